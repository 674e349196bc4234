"""How many workers a cluster takes, and with what."""

import logging

import pytest

from lesioncam.cluster import Capacity, Node
from lesioncam.errors import InputError
from lesioncam.training.workers import Workers, plan_workers
from lesioncam.vision.hardware import Hardware


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 CPUs and 2 GPUs that torch cannot use; CPUs without bfloat16."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    prefix = "lesioncam.training.workers"
    monkeypatch.setattr(f"{prefix}.capacity", lambda: Capacity((Node(8.0, 2),)))
    monkeypatch.setattr(f"{prefix}.probe_hardware", lambda **_: Hardware("cpu", ("float32",)))


@pytest.mark.parametrize(
    ("count", "expected", "line"),
    [
        (1, Workers(1, False, 7.0, 8, "float32"), "1 worker on CPU, 8 threads"),
        (8, Workers(8, False, 0.5, 1, "float32"), "8 workers on CPU, 1 thread each"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_cpus_are_divided(
    count: int, expected: Workers, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lesioncam"):
        assert plan_workers(count, gpu=False) == expected
    assert caplog.messages == [line]


@pytest.mark.usefixtures("machine")
def test_gpus_that_torch_cannot_use_are_not_planned_for(caplog: pytest.LogCaptureFixture) -> None:
    assert not plan_workers(2, gpu=None).gpu
    assert "torch cannot use the GPUs of this cluster; training on CPU" in caplog.text
    with pytest.raises(InputError, match="--gpu: torch cannot use the GPUs of this cluster"):
        plan_workers(2, gpu=True)


def test_one_precision_is_chosen_for_all(
    machine: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def probe(gpu: bool) -> Hardware:
        asked.append(gpu)
        return Hardware("cuda", ("bfloat16", "float32"))

    monkeypatch.setattr("lesioncam.training.workers.probe_hardware", probe)
    with caplog.at_level(logging.INFO, "lesioncam"):
        workers = plan_workers(2, gpu=None)
    assert (workers.gpu, workers.precision, asked) == (True, "bfloat16", [True])
    assert caplog.messages == ["2 workers on GPU"]


@pytest.mark.usefixtures("machine")
def test_more_gpus_than_there_are_is_bad_input() -> None:
    with pytest.raises(InputError, match="--gpu: 3 workers need a GPU each and this machine has 2"):
        plan_workers(3, gpu=True)
