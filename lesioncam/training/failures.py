"""What workers break off by: a stage goes on after the one, and ends by the other.

A worker died, or a node, a store or a connection was away: Ray Train starts all workers again, from
the last checkpoint. What would come again ends the stage at once: a lease that another run has, bad
input, memory that is short, a bug.
"""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray.train
import torch

from lesioncam.errors import InputError, RunBroke
from lesioncam.storage.lease import LeaseLostError
from lesioncam.training.progress import Board, Setback

WORKER_DEATHS = 8  # workers that may die in a stage before it gives up
_BUGS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
_COMES_AGAIN = (InputError, LeaseLostError, torch.OutOfMemoryError, *_BUGS)


class GoOnOrEnd(ray.train.UserCallback):  # type: ignore[misc]
    """Ends a stage, from Ray Train's controller, by what would come again; tells of the rest.

    Args:
        stage: `stage1` or `stage2`.
        board: where it is told.
    """

    def __init__(self, stage: str, board: Board):
        self.stage, self.board = stage, board

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Ray Train calls this when workers broke off, and ends where it raises."""
        for error in worker_exceptions.values():
            if isinstance(error, _COMES_AGAIN):
                raise error
        for rank, error in worker_exceptions.items():
            self.board.post(Setback(self.stage, rank, _first_line(error)))


@contextmanager
def traceback_noted() -> Iterator[None]:
    """For a worker: what it raises takes its traceback along, which does not travel by itself."""
    try:
        yield
    except _BUGS as error:
        error.add_note(traceback.format_exc())
        raise


def what_ended(stage: str, error: Exception) -> Exception:
    """A stage that Ray Train gave up: a `RunBroke`, or the worker's own exception if that is a bug.

    Args:
        stage: `stage1` or `stage2`.
        error: a `ray.train.TrainingFailedError`.
    """
    cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
    return cause if isinstance(cause, _BUGS) else RunBroke(told(stage, cause))


def told(stage: str, error: Exception) -> str:
    """One line for a stage that was given up."""
    cause = _last_line(error)
    if "out of memory" in cause.lower():
        return f"{stage} broke off: {cause}; lower batch_size in --config"
    if "run the same command again" in cause:
        return f"{stage} broke off: {cause}"
    return f"{stage} broke off, run the same command again: {cause}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]


def _last_line(error: Exception) -> str:
    """The last line of a traceback that has come through processes of Ray, without its colours."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in str(error).splitlines()]
    return next((line.strip() for line in reversed(lines) if line.strip(" ^~")), "")[:300]
