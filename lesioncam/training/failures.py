"""Failures of a stage's workers: which are retried, and the error of a stage that is given up.

A dead worker or node, or a store or connection that fails, makes Ray Train restart all workers from
the last checkpoint. What a retry would repeat ends the stage at once: a lease that another run has,
a GPU with too little memory, and bugs, such as a `KeyError`.
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

from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.storage.lease import LeaseLostError
from lesioncam.training.progress import ProgressBoard, WorkerFailure, stage_name

MAX_FAILURES = 8  # restarts in a stage before it is given up
NON_RETRYABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
_RETRYABLE = (ray.exceptions.RayError, pa.ArrowException)  # though some are of those types, too
_REPORT_AGAIN_S = 60.0  # the same failure is reported once in this time; Ray Train polls often
_MAX_REASON = 300  # characters


class FatalWorkerError(Exception):
    """A worker's failure that a retry would repeat; raised in Ray Train's controller.

    Attributes:
        failure: the worker's exception.
    """

    def __init__(self, failure: Exception):
        super().__init__(failure)
        self.failure = failure


class FailurePolicy(ray.train.UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: ends a stage where a retry is useless, reports the rest.

    Args:
        stage: `stage1` or `stage2`.
        board: where failures are reported.
    """

    def __init__(self, stage: str, board: ProgressBoard):
        self.stage, self.board = stage, board
        self._reported: dict[WorkerFailure, float] = {}

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002
        worker_exceptions: Mapping[int, Exception],
    ) -> None:
        """Ray Train calls this when workers failed; it gives the stage up if this raises.

        Raises:
            FatalWorkerError: a retry would fail the same way.
        """
        for error in worker_exceptions.values():
            if isinstance(error, LeaseLostError | torch.OutOfMemoryError) or _is_bug(error):
                raise FatalWorkerError(error)
        now = time.monotonic()
        for rank, error in worker_exceptions.items():
            failure = WorkerFailure(self.stage, rank, _describe(_underlying(error)))
            if now - self._reported.get(failure, -_REPORT_AGAIN_S) >= _REPORT_AGAIN_S:
                self._reported[failure] = now
                self.board.report(failure)


@contextmanager
def traceback_as_note() -> Iterator[None]:
    """In a worker: add a bug's traceback to it as a note, because pickling drops tracebacks."""
    try:
        yield
    except NON_RETRYABLE as error:
        if _is_bug(error):
            error.add_note(traceback.format_exc())
        raise


def stage_error(stage: str, error: Exception) -> Exception:
    """The error of a stage that Ray Train gave up: one line, or a worker's bug as it is.

    Args:
        stage: `stage1` or `stage2`.
        error: a `ray.train.TrainingFailedError`.
    """
    cause = _cause(error)
    if isinstance(cause, FatalWorkerError):
        cause = cause.failure
        if _is_bug(cause):
            return cause
    reason = _describe(cause)
    if isinstance(cause, torch.OutOfMemoryError):
        reason += "; lower batch_size in --config"
    elif isinstance(cause, InputError):  # it was good input when the run began
        reason += "; fix that and run the same command again"
    elif not isinstance(cause, RunFailedError):
        reason += "; run the same command again"
    return RunFailedError(f"{stage_name(stage)} failed: {reason}")


def _cause(error: Exception) -> Exception:
    """The exception behind a `TrainingFailedError`; of several workers', a root cause if known."""
    if isinstance(error, ray.train.ControllerError):
        failure: Exception = error.controller_failure
        return failure
    if not isinstance(error, ray.train.WorkerGroupError) or not error.worker_failures:
        return error
    failures = [_underlying(failure) for failure in error.worker_failures.values()]
    # When one worker dies, the others fail too, with a RuntimeError of their connection.
    causes = (LesioncamError, ray.exceptions.RayError)
    return next((failure for failure in failures if isinstance(failure, causes)), failures[0])


def _underlying(error: Exception) -> Exception:
    """How a worker or its node died, where Ray Train only says that it does not answer."""
    failure: Exception = getattr(error, "health_check_failure", error)
    return failure


def _is_bug(error: Exception) -> bool:
    return isinstance(error, NON_RETRYABLE) and not isinstance(error, _RETRYABLE)


def _describe(error: Exception) -> str:
    """An exception in one line, without Ray's colors."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    if isinstance(error, LesioncamError):
        return text
    return f"{type(error).__name__}: {text}"[:_MAX_REASON]
