import logging

import pytest

from lesioncam.cluster import Capacity, Node
from lesioncam.errors import InputError
from lesioncam.scoring import plan as planning
from lesioncam.scoring.plan import check_cluster, make_plan, plan_for


def cluster(cpus: float, gpus: int = 0) -> Capacity:
    """One node."""
    return Capacity((Node(cpus, gpus),))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Capacity]:
    """The cluster as it is found: each look takes the next, the last stays."""
    found = [cluster(16)]
    monkeypatch.setattr(planning, "capacity", lambda: found.pop(0) if found[1:] else found[0])
    monkeypatch.setattr(planning, "await_resources", lambda *_: None)
    answers = {True: ("cuda", "bfloat16"), False: ("cpu", "float32")}
    monkeypatch.setattr(planning, "probe_hardware", lambda *, gpu: answers[gpu])
    return found


@pytest.mark.parametrize("cpus", [2, 3, 16, 64])
def test_actors_leave_half_of_the_cpus_even_on_a_quarter_of_the_nodes(cpus: int) -> None:
    plan = plan_for(cluster(cpus), 0, "float32", "cpu")
    assert 2 * plan.actors * plan.actor_cpus <= cpus / 4 / 2
    assert 2 * plan.actors <= cpus


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (16, 1), (32, 4)])
def test_both_stages_share_each_gpu(cpus: int, gpus: int) -> None:
    plan = plan_for(cluster(cpus, gpus), gpus, "bfloat16", "cuda")
    assert plan.actors == gpus
    first, second = plan.actor_gpus
    assert first + second == 1.0
    assert 2 * first > 1.0  # no two of stage 1 on a GPU, where one of stage 2 would find no room
    assert 2 * plan.actors * plan.actor_cpus + plan.decode_cpus <= cpus


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 0), (16, 0), (2, 1), (16, 1), (64, 8)])
def test_the_window_has_room_for_a_part_and_for_every_actor_at_work(cpus: int, gpus: int) -> None:
    plan = plan_for(cluster(cpus, gpus), gpus, "float32", "cpu")
    assert plan.window >= 2 * (plan.part_rows + 2 * plan.actors * plan.block_rows)


def test_gpus_yet_to_be_started_bring_their_cpus() -> None:
    one, four = (plan_for(cluster(8, 1), gpus, "bfloat16", "cuda") for gpus in (1, 4))
    assert (one.actors, four.actors) == (1, 4)
    assert four.window - one.window == 256 * (4 * 3 + 24)


def test_the_hardware_decides_where_nothing_is_asked_for(here: list[Capacity]) -> None:
    plan = make_plan(None, "auto", 100)
    assert (plan.actor_gpus, plan.device, plan.precision) == ((0, 0), "cpu", "float32")
    here[:] = [cluster(16, 2)]
    plan = make_plan(None, "auto", 100)
    assert (plan.actors, plan.device, plan.precision) == (2, "cuda", "bfloat16")


def test_what_is_asked_for_is_done(here: list[Capacity]) -> None:
    assert make_plan(None, "bfloat16", 100).precision == "bfloat16"
    here[:] = [cluster(16, 2)]
    assert make_plan(1, "float32", 10**9).actors == 1
    assert make_plan(1, "float32", 10**9).precision == "float32"
    assert make_plan(0, "auto", 10**9).actor_gpus == (0, 0)


@pytest.mark.parametrize(
    ("gpus", "left", "actors"), [(0, 1, 1), (0, 50_001, 2), (3, 1, 3), (0, 10**9, 8)]
)
def test_more_work_starts_more_gpus_as_far_as_is_allowed(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch, gpus: int, left: int, actors: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    here[:] = [cluster(64, gpus)]
    assert make_plan(8, "auto", left).actors == actors


def test_a_node_that_came_while_it_was_waited_for_counts(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    here[:] = [cluster(0), cluster(8, 1)]
    assert make_plan(4, "auto", 1).window == plan_for(cluster(8, 1), 1, "auto", "cuda").window


def test_a_gpu_that_this_machine_has_not_is_refused(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="--gpus: this machine has no GPU"):
        check_cluster(1)
    check_cluster(0)
    check_cluster(None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_cluster(1)  # one may come


@pytest.mark.parametrize("small", [Node(0, 4), Node(1, 4), Node(4, 8)])
def test_both_stages_fit_the_node_that_has_the_fewest_cpus_for_its_gpus(small: Node) -> None:
    mixed = Capacity((Node(64, 0), Node(16, 1), small))
    plan = plan_for(mixed, mixed.gpus, "bfloat16", "cuda")
    assert 2 * small.gpus * plan.actor_cpus <= small.cpus / 2


def test_more_gpus_than_this_machine_has_are_not_waited_for(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    here[:] = [cluster(16, 2)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert make_plan(8, "auto", 10**9).actors == 2


def test_gpus_that_torch_cannot_use_are_told(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here[:] = [cluster(16, 1)]
    monkeypatch.setattr(planning, "probe_hardware", lambda **_: ("cpu", "float32"))
    with caplog.at_level(logging.WARNING, "lesioncam"):
        plan = make_plan(None, "auto", 100)
    assert (sum(plan.actor_gpus), plan.device, plan.precision) == (1.0, "cpu", "float32")
    assert "torch can use no GPU of this cluster" in caplog.text


@pytest.mark.parametrize("cpus", [0.0, 1.0])
def test_one_cpu_is_refused(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch, cpus: float
) -> None:
    here[:] = [cluster(cpus)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=f"has {cpus:g} CPUs; scoring needs at least two"):
        check_cluster(None)
    with pytest.raises(InputError, match="needs at least two"):
        make_plan(None, "auto", 1)


def test_a_cluster_whose_first_node_has_yet_to_come_is_not_refused(
    here: list[Capacity], monkeypatch: pytest.MonkeyPatch
) -> None:
    here[:] = [cluster(0)]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check_cluster(None)
