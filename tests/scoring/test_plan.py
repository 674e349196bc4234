"""Plan: the pipeline fits the cluster, uses what can compute, and never waits for itself."""

import logging

import pytest

from lesioncam.cluster import Capacity, Node
from lesioncam.errors import InputError
from lesioncam.scoring import plan as planning
from lesioncam.scoring.plan import check_cluster, make_plan, plan_for
from lesioncam.vision.hardware import Hardware

CPU = Hardware("cpu", ("float32",))
GPU = Hardware("cuda", ("bfloat16", "float32"))


def cluster(cpus: float, gpus: int = 0) -> Capacity:
    """One node."""
    return Capacity((Node(cpus, gpus),))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Capacity]:
    """A local cluster, as it is found each time; the last stays."""
    found = [cluster(16)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(planning, "capacity", lambda: found.pop(0) if found[1:] else found[0])
    monkeypatch.setattr(planning, "await_resources", lambda *_: None)
    monkeypatch.setattr(planning, "probe_hardware", lambda *, gpu: GPU if gpu else CPU)
    return found


@pytest.mark.parametrize(
    ("cpus", "gpus"), [(2, 0), (3, 0), (16, 0), (64, 0), (2, 1), (16, 1), (64, 8)]
)
def test_actors_leave_room_for_decoding_and_the_window_for_every_actor(
    cpus: int, gpus: int
) -> None:
    plan = plan_for(cluster(cpus, gpus), gpus, "float32")
    assert plan.actors >= 1
    assert 2 * plan.actors * plan.actor_cpus + plan.decode_cpus <= cpus
    assert plan.window >= 2 * (plan.part_rows + 2 * plan.actors * plan.block_rows)
    assert plan.block_rows % plan.batch_size == 0


@pytest.mark.parametrize("cpus", [2, 3, 16, 64])
def test_without_gpus_each_cpu_runs_one_network(cpus: int) -> None:
    plan = plan_for(cluster(cpus), 0, "float32")
    assert 2 * plan.actors == cpus // 2 * 2
    remaining = cpus / 4  # after three of four nodes were lost: all actors restart on the last
    assert 2 * plan.actors * plan.actor_cpus <= remaining / 2


@pytest.mark.parametrize("small", [Node(0, 4), Node(1, 4), Node(4, 8)])
def test_both_stages_fit_on_each_gpu_even_on_the_smallest_node(small: Node) -> None:
    mixed = Capacity((Node(64, 0), Node(16, 1), small))
    plan = plan_for(mixed, mixed.gpus, "bfloat16")
    first, second = plan.actor_gpus
    assert first + second == 1.0
    assert 2 * first > 1.0  # two actors of stage 1 on one GPU would keep stage 2 out
    assert 2 * small.gpus * plan.actor_cpus <= small.cpus / 2


@pytest.mark.parametrize(
    ("gpus", "precision", "actors", "chosen"),
    [(None, "auto", 2, "bfloat16"), (1, "float32", 1, "float32"), (8, "auto", 2, "bfloat16")],
)
def test_gpus_are_used_up_to_the_maximum(
    found: list[Capacity], gpus: int | None, precision: str, actors: int, chosen: str
) -> None:
    found[:] = [cluster(16, 2)]
    plan = make_plan(gpus, precision, 10**9, quantized=False)
    assert (plan.actors, plan.precision) == (actors, chosen)
    assert sum(plan.actor_gpus) == 1.0


def test_gpus_can_be_left_unused(found: list[Capacity]) -> None:
    found[:] = [cluster(16, 2)]
    assert make_plan(0, "auto", 100, quantized=False) == plan_for(cluster(16), 0, "float32")


def test_gpus_that_torch_cannot_use_leave_a_plan_for_cpus(
    found: list[Capacity], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found[:] = [cluster(16, 1)]
    monkeypatch.setattr(planning, "probe_hardware", lambda *, gpu: CPU)  # noqa: ARG005
    with caplog.at_level(logging.WARNING, "lesioncam"):
        assert make_plan(None, "auto", 100, quantized=False) == plan_for(cluster(16), 0, "float32")
    assert "torch cannot use the GPUs of this cluster" in caplog.text


@pytest.mark.parametrize(
    ("gpus", "pending", "actors"), [(0, 1, 1), (0, 50_001, 2), (3, 1, 3), (0, 10**9, 8)]
)
def test_more_images_start_more_gpus_up_to_the_maximum(
    found: list[Capacity], monkeypatch: pytest.MonkeyPatch, gpus: int, pending: int, actors: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    found[:] = [cluster(64, gpus)]
    assert make_plan(8, "auto", pending, quantized=False).actors == actors


def test_a_node_that_joined_while_it_was_awaited_counts(
    found: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    found[:] = [cluster(0), cluster(8, 1)]
    assert make_plan(4, "auto", 1, quantized=False) == plan_for(cluster(8, 1), 1, "bfloat16")


def test_a_gpu_is_refused_where_none_can_come(
    found: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="--gpus: this machine has no GPU"):
        check_cluster(1)
    check_cluster(0)
    check_cluster(None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_cluster(1)


@pytest.mark.parametrize("cpus", [0.0, 1.0])
def test_one_cpu_is_refused(found: list[Capacity], cpus: float) -> None:
    found[:] = [cluster(cpus)]
    with pytest.raises(InputError, match=f"at least 2 CPUs; the Ray cluster has {cpus:g}"):
        check_cluster(None)
    with pytest.raises(InputError, match="needs at least 2 CPUs"):
        make_plan(None, "auto", 1, quantized=False)


def test_a_cluster_whose_first_node_has_yet_to_come_is_not_refused(
    found: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    found[:] = [cluster(0)]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_cluster(None)


VNNI = Hardware("cpu", ("int8", "bfloat16", "float32"))


@pytest.mark.parametrize(
    ("precision", "quantized", "chosen"),
    [
        ("auto", True, "int8"),
        ("auto", False, "bfloat16"),
        ("int8", True, "int8"),
        ("float32", True, "float32"),
    ],
)
def test_int8_is_planned_where_bundle_and_hardware_have_it(
    found: list[Capacity],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    quantized: bool,
    chosen: str,
) -> None:
    monkeypatch.setattr(planning, "probe_hardware", lambda *, gpu: GPU if gpu else VNNI)
    assert make_plan(None, precision, 100, quantized=quantized).precision == chosen


def test_a_precision_that_the_cluster_does_not_have_is_refused(found: list[Capacity]) -> None:
    with pytest.raises(InputError, match="--precision: int8 needs OpenVINO and a CPU with VNNI"):
        make_plan(None, "int8", 100, quantized=True)
    with pytest.raises(InputError, match=r"--precision: .* does not compute in bfloat16"):
        make_plan(None, "bfloat16", 100, quantized=True)
    found[:] = [cluster(16, 2)]
    with pytest.raises(InputError, match="--precision: int8 runs on CPUs only; use --gpus 0"):
        make_plan(None, "int8", 100, quantized=True)
