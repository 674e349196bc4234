"""What workers break off by: a stage goes on after the one, and ends by the other.

A worker died, or a node, a store or a connection was away: Ray Train starts all workers again, from
the last checkpoint. What would come again ends the stage at once: a lease that another run has, a
GPU's memory that is short, and what Python calls a mistake, such as a `KeyError`.
"""

import re
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray.exceptions
import ray.train
import torch

from lesioncam.errors import RunFailedError
from lesioncam.storage.lease import LeaseLostError
from lesioncam.training.progress import ProgressBoard, WorkerFailure

WORKER_DEATHS = 8  # workers that may die in a stage before it gives up
NON_RETRYABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
_NONE_OF_OURS = (ray.exceptions.RayError, pa.ArrowException)  # though some are of those types, too
_AGAIN_SECONDS = 60  # until the same setback is told again: while others run on, it is seen often


class FailurePolicy(ray.train.UserCallback):  # type: ignore[misc]
    """Ends a stage, from Ray Train's controller, by what would come again; tells of the rest.

    Args:
        stage: `stage1` or `stage2`.
        board: where it is told.
    """

    def __init__(self, stage: str, board: ProgressBoard):
        self.stage, self.board = stage, board
        self._told: dict[WorkerFailure, float] = {}

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Ray Train calls this when workers broke off, and ends where it raises."""
        for error in worker_exceptions.values():
            if isinstance(error, LeaseLostError | torch.OutOfMemoryError) or _is_mistake(error):
                raise error
        now = time.monotonic()
        for rank, error in worker_exceptions.items():
            setback = WorkerFailure(self.stage, rank, _one_line(error))
            if now - self._told.get(setback, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
                self._told[setback] = now
                self.board.post(setback)


@contextmanager
def traceback_noted() -> Iterator[None]:
    """For a worker: a mistake takes its traceback along, which does not travel by itself."""
    try:
        yield
    except NON_RETRYABLE as error:
        if _is_mistake(error):
            error.add_note(traceback.format_exc())
        raise


def what_ended(stage: str, error: Exception) -> Exception:
    """A stage that Ray Train gave up: a `RunFailedError`, or a worker's own exception if by mistake.

    Args:
        stage: `stage1` or `stage2`.
        error: a `ray.train.TrainingFailedError`.
    """
    if not isinstance(error, ray.train.ControllerError):
        return RunFailedError(told(stage, str(error)))
    cause: Exception = error.controller_failure
    if _is_mistake(cause) and hasattr(cause, "__notes__"):  # by a worker, not by the controller
        return cause
    said = str(cause) if isinstance(cause, RunFailedError) else f"{type(cause).__name__}: {cause}"
    return RunFailedError(told(stage, said))


def _is_mistake(error: Exception) -> bool:
    return isinstance(error, NON_RETRYABLE) and not isinstance(error, _NONE_OF_OURS)


def told(stage: str, said: str) -> str:
    """One line for a stage that was given up, from what its end says in one or many."""
    cause = _last_line(said)
    if "out of memory" in cause.lower():
        return f"{stage} broke off: {cause}; lower batch_size in --config"
    if "run the same command again" in cause:
        return f"{stage} broke off: {cause}"
    return f"{stage} broke off, run the same command again: {cause}"


def _one_line(error: Exception) -> str:
    cause = getattr(error, "health_check_failure", error)  # how a worker died, or its node
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:300]


def _last_line(said: str) -> str:
    """The last line of a traceback that has come through processes of Ray, without its colors."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in said.splitlines()]
    return next((line.strip() for line in reversed(lines) if line.strip(" ^~")), "")[:300]
