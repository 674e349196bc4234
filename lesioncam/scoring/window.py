"""Window: how far fetching may run ahead of what is durable.

Ray Data fetches ahead of the networks for as long as its object store has room, and whatever is
fetched but not yet written is done again after a crash. So a block waits until the window has room
for it: that bounds what a killed run repeats, whatever it was killed by. The window also counts
what is classified: parts become durable many images at a time, too seldom to show progress.
"""

import asyncio
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_MAX_CALLS = 100_000  # that may wait at once: more than a cluster decodes blocks at once
_RESTART_PAUSE_S = 15
_ANSWER_TIMEOUT_S = 1.0


class Window:
    """Counts the images in progress, fetched but not yet durable; an actor of its own in a run.

    Args:
        images: that may be in progress at once.
    """

    def __init__(self, images: int):
        self._images = self._free = images
        self._classified = 0
        self._acquired: set[int] = set()
        self._released: set[int] = set()
        self._changed = asyncio.Condition()

    async def acquire(self, first: int, images: int) -> None:
        """Wait until there is room for a block, and count it; a repeated task's block once.

        Args:
            first: the number of its first row.
            images: in it.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: first in self._acquired or images <= self._free)
            if first not in self._acquired:
                self._acquired.add(first)
                self._free -= images

    async def release(self, first: int, images: int) -> None:
        """Make room for a durable part; once, though it is written again.

        Args:
            first: the number of its first row.
            images: in it.
        """
        async with self._changed:
            if first not in self._released:
                self._released.add(first)
                self._free = min(self._free + images, self._images)
                self._changed.notify_all()

    async def count(self, images: int) -> None:
        """Count classified images, for the progress that people see; repeated ones too."""
        self._classified += images

    async def classified(self) -> int:
        """How many images were counted."""
        return self._classified


class WindowActor(Window):
    """A window that restarts where its process was lost; then it counts from zero.

    What ended it may be the end of the run, which Ray needs some seconds to clear away: until then
    it must not let waiting blocks in.
    """

    def __init__(self, images: int):
        if ray.get_runtime_context().was_current_actor_reconstructed:
            time.sleep(_RESTART_PAUSE_S)
        super().__init__(images)


def open_window(images: int) -> Any:
    """A window as an actor on this machine, for as long as the run holds what this returns."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_MAX_CALLS,
        scheduling_strategy=here,
    )(WindowActor)
    return actor.remote(images)


def count_classified(window: Any) -> int:
    """How many images were classified, as far as the window's actor answers now; 0 if not."""
    try:
        classified: int = ray.get(window.classified.remote(), timeout=_ANSWER_TIMEOUT_S)
    except RayError:  # it restarts, or the run ends
        return 0
    return classified
