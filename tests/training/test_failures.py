"""Which failures of workers a stage goes on after, and how it ends after the others."""

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
from lesioncam.training.failures import FailurePolicy, told, traceback_noted, what_ended
from lesioncam.training.progress import WorkerFailure


@dataclass
class Wall:
    """A board without an actor."""

    posted: list[Any] = field(default_factory=list)

    def post(self, content: Any) -> None:
        self.posted.append(content)


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
def test_what_may_pass_is_told_and_tried_again(error: Exception) -> None:
    wall: Any = Wall()
    FailurePolicy("stage2", wall).after_exception(None, {1: error})
    (setback,) = wall.posted
    assert setback == WorkerFailure("stage2", 1, setback.cause)
    assert str(setback).startswith(f"stage 2: worker 1 broke off: {type(error).__name__}: ")
    assert " ".join(str(error).split())[:100] in str(setback)
    assert "\n" not in str(setback)


def test_the_same_setback_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    wall: Any = Wall()
    tell = FailurePolicy("stage1", wall)
    for now, rank, cause in ((0, 0, "a"), (1, 0, "a"), (2, 1, "a"), (3, 0, "b"), (61, 0, "a")):
        monkeypatch.setattr("time.monotonic", lambda now=now: 1e6 + now)
        tell.after_exception(None, {rank: RuntimeError(cause)})
    assert [(one.rank, one.cause[-1]) for one in wall.posted] == [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        LeaseLostError("s3://b/model is not run 7's any more"),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyError("nevus"),
        ValueError("shapes"),
    ],
)
def test_what_would_come_again_ends_the_stage(error: Exception) -> None:
    wall: Any = Wall()
    with pytest.raises(type(error)) as raised:
        FailurePolicy("stage1", wall).after_exception(None, {0: RuntimeError("peer"), 1: error})
    assert raised.value is error
    assert not wall.posted


def test_a_bug_keeps_its_traceback_and_the_rest_is_one_line() -> None:
    with pytest.raises(KeyError) as raised, traceback_noted():
        raise KeyError("nevus")
    travelled = pickle.loads(pickle.dumps(ray.train.ControllerError(raised.value)))
    bug = what_ended("stage1", travelled)
    assert isinstance(bug, KeyError)
    assert "in test_a_bug_keeps_its_traceback" in "".join(bug.__notes__)
    controllers_own = what_ended("stage1", ray.train.ControllerError(KeyError("nevus")))
    assert str(controllers_own) == "stage1 broke off, run the same command again: KeyError: 'nevus'"
    lost = LeaseLostError("s3://b/model is not run 7's any more; run the same command again")
    ended = what_ended("stage1", ray.train.ControllerError(lost))
    assert isinstance(ended, RunFailedError)
    assert str(ended) == f"stage1 broke off: {lost}"
    deaths = ray.train.WorkerGroupError("[Rank 0]\nSIGKILL", {0: RuntimeError("SIGKILL")})
    assert str(what_ended("stage2", deaths)) == (
        "stage2 broke off, run the same command again: SIGKILL"
    )


def test_the_line_of_a_stage_that_ray_train_gave_up() -> None:
    lost = "Traceback ...\nRunBroke: it is gone; run the same command again\n\x1b[31m^^^\x1b[0m"
    assert told("stage1", lost) == (
        "stage1 broke off: RunFailedError: it is gone; run the same command again"
    )
    assert told("stage2", "SIGKILL") == ("stage2 broke off, run the same command again: SIGKILL")
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried"
    assert told("stage2", memory).endswith("Tried; lower batch_size in --config")
