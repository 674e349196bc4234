import pytest
import ray

from lesioncam.errors import InputError
from lesioncam.scoring.plan import make_plan


@pytest.mark.parametrize("cpus", [2, 3, 16, 64])
def test_actors_leave_half_of_the_cpus_even_on_a_quarter_of_the_nodes(
    monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    plan = make_plan("float32")
    assert 2 * plan.actors * plan.actor_cpus <= cpus / 4 / 2
    assert 2 * plan.actors * plan.threads <= cpus
    assert plan.device == "cpu"


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (16, 1), (32, 4)])
def test_both_stages_share_each_gpu(monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    plan = make_plan("bfloat16")
    assert (plan.actors, plan.actor_gpus, plan.device) == (gpus, 0.5, "cuda")
    assert 2 * plan.actors * plan.actor_cpus + plan.decode_cpus <= cpus


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 0), (16, 0), (2, 1), (16, 1), (64, 8)])
def test_the_window_has_room_for_a_part_and_for_every_actor_at_work(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    plan = make_plan("float32")
    assert plan.window >= 2 * (plan.part_rows + 2 * plan.actors * plan.block_rows)


def test_one_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(InputError, match="needs at least two"):
        make_plan("float32")
