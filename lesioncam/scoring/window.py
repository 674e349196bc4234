"""Window: how far fetching may run ahead of what is durable.

Ray Data fetches ahead of the networks for as long as its object store has room, and whatever is
fetched but not yet written is done again after a crash. So blocks wait at the entrance until there
is room for them: that bounds what a killed run repeats, whatever it was killed by.
"""

import asyncio
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_CALLS = 100_000  # that may wait at once: more than a cluster decodes blocks at once
_CLEARED = 15  # seconds


class Window:
    """Counts the images under way, fetched but not yet durable; an actor of its own in a run.

    Args:
        images: that may be under way at once.
    """

    def __init__(self, images: int):
        self._images = self._free = images
        self._entered: set[int] = set()
        self._left: set[int] = set()
        self._moved = asyncio.Condition()

    async def enter(self, first: int, images: int) -> None:
        """Wait until a block fits in, and count it; a repeated task's block has entered already.

        Args:
            first: its first row's number.
            images: in it.
        """
        async with self._moved:
            await self._moved.wait_for(lambda: first in self._entered or images <= self._free)
            if first not in self._entered:
                self._entered.add(first)
                self._free -= images

    async def leave(self, first: int, images: int) -> None:
        """Make room: a part is durable; one that is written again made it already.

        Args:
            first: its first row's number.
            images: in it.
        """
        async with self._moved:
            if first not in self._left:
                self._left.add(first)
                self._free = min(self._free + images, self._images)
                self._moved.notify_all()


class WindowActor(Window):
    """A window that is started again where its process was lost; then it counts from nothing.

    What ended it may be the end of the run, which Ray needs some seconds to clear away: until then
    it must not let in what was waiting.
    """

    def __init__(self, images: int):
        if ray.get_runtime_context().was_current_actor_reconstructed:
            time.sleep(_CLEARED)
        super().__init__(images)


def open_window(images: int) -> Any:
    """A window as an actor on this machine, for as long as the run holds what this returns."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_CALLS,
        scheduling_strategy=here,
    )(WindowActor)
    return actor.remote(images)
