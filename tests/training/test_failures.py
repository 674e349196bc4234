"""Which failures of workers are retried, and the error after the others."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
import ray.exceptions
import ray.train
import torch

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.lease import LeaseLostError
from lesioncam.storage.store import StoreError
from lesioncam.training.failures import (
    FailurePolicy,
    FatalWorkerError,
    stage_error,
    traceback_as_note,
)
from lesioncam.training.progress import WorkerFailure

LOST = LeaseLostError("run 7 no longer holds s3://b/model; run the same command again")


@dataclass
class Board:
    """A board without an actor."""

    reports: list[Any] = field(default_factory=list)

    def report(self, report: Any) -> None:
        self.reports.append(report)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection closed by peer\nand more"),
        ConnectionResetError("Connection closed by peer"),
        StoreError(ErrorKind.UNREACHABLE, "Connection closed by peer"),
        RunFailedError("cannot read from s3://b/model: Connection closed by peer"),
        InputError("cannot read from s3://b/model: the store refused: Connection closed by peer"),
        ray.exceptions.ReferenceCountingAssertionError("0" * 56, "", ""),
        pa.ArrowInvalid("Connection closed by peer"),
    ],
)
def test_a_failure_that_may_be_temporary_is_reported_and_retried(error: Exception) -> None:
    board: Any = Board()
    FailurePolicy("stage2", board).after_exception(None, {1: error})
    (failure,) = board.reports
    assert failure == WorkerFailure("stage2", 1, failure.cause)
    assert str(failure).startswith("stage 2: worker 1 failed: ")
    assert " ".join(str(error).split())[:100] in str(failure)
    assert "\n" not in str(failure)


def test_the_same_failure_is_reported_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = Board()
    policy = FailurePolicy("stage1", board)
    for now, rank, cause in ((0, 0, "a"), (1, 0, "a"), (2, 1, "a"), (3, 0, "b"), (61, 0, "a")):
        monkeypatch.setattr("time.monotonic", lambda now=now: 1e6 + now)
        policy.after_exception(None, {rank: RuntimeError(cause)})
    assert [(one.rank, one.cause[-1]) for one in board.reports] == [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a"),
    ]


@pytest.mark.parametrize(
    "error",
    [LOST, torch.OutOfMemoryError("CUDA out of memory"), KeyError("nevus"), ValueError("shapes")],
)
def test_a_failure_that_a_retry_would_repeat_ends_the_stage(error: Exception) -> None:
    board: Any = Board()
    with pytest.raises(FatalWorkerError) as raised:
        FailurePolicy("stage1", board).after_exception(None, {0: RuntimeError("peer"), 1: error})
    assert raised.value.failure is error
    assert not board.reports


def fatal(error: Exception) -> Exception:
    """What the driver gets of a worker's fatal error."""
    sent = ray.train.ControllerError(FatalWorkerError(error))
    received: Exception = pickle.loads(pickle.dumps(sent))
    return received


def test_a_workers_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError) as raised, traceback_as_note():
        raise KeyError("nevus")
    bug = stage_error("stage1", fatal(raised.value))
    assert isinstance(bug, KeyError)
    assert "in test_a_workers_bug_keeps_its_traceback" in "".join(bug.__notes__)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (fatal(LOST), f"stage 1 failed: {LOST}"),
        (
            fatal(torch.OutOfMemoryError("CUDA out of memory. Tried")),
            "stage 1 failed: OutOfMemoryError: CUDA out of memory. Tried; lower batch_size in "
            "--config",
        ),
        (  # the controller's own bug
            ray.train.ControllerError(KeyError("nevus")),
            "stage 1 failed: KeyError: 'nevus'; run the same command again",
        ),
        (
            ray.train.WorkerGroupError("", {0: RuntimeError("\x1b[31mSIGKILL\x1b[0m\nand more")}),
            "stage 1 failed: RuntimeError: SIGKILL and more; run the same command again",
        ),
        (  # by which the other worker fails, too
            ray.train.WorkerGroupError("", {0: RuntimeError("peer"), 1: InputError("no access")}),
            "stage 1 failed: no access; fix that and run the same command again",
        ),
    ],
)
def test_other_stage_failures_are_one_line(error: Exception, line: str) -> None:
    ended = stage_error("stage1", error)
    assert isinstance(ended, RunFailedError)
    assert str(ended) == line
