import os
import time
from pathlib import Path

import psutil
import pytest
import ray

from lesioncam.cluster import Capacity, Node, broke_off, can_grow, capacity
from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.store import StoreError


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "share"),
    [
        ([(2, 0)], 1, False, 2.0),
        ([(2, 0)], 2, False, 1.0),
        ([(1, 0)], 2, False, 0.5),
        ([(8, 0), (2, 0), (2, 0)], 3, False, 8 / 3),
        ([(8, 0), (2, 0), (2, 0)], 2, False, 4.0),
        ([(0, 0), (4, 0)], 1, False, 4.0),
        ([(16, 1), (4, 1)], 1, True, 16.0),
        ([(16, 1), (4, 1)], 2, True, 4.0),
        ([(64, 0), (4, 1), (8, 1)], 2, True, 4.0),
        ([(32, 4)], 4, True, 8.0),
        ([(32, 2)], 4, True, 0.0),
        ([(0, 1), (8, 0)], 1, True, 0.0),
        ([(10, 0)], 7, False, 10 / 7),
        ([(0.3, 0)], 3, False, 0.3 / 3),
    ],
)
def test_workers_get_what_fits_on_nodes_of_different_sizes(
    nodes: list[tuple[float, int]], workers: int, gpu: bool, share: float
) -> None:
    assert Capacity(tuple(Node(*node) for node in nodes)).share(workers, gpu=gpu) == share


def test_this_machines_own_ray_has_its_cores_and_cannot_grow(local_ray: None) -> None:
    here = capacity()
    assert here.cpus >= 2
    assert here.cpus_per_gpu is None
    assert not can_grow()


def test_idle_processes_wait_for_the_next_task(local_ray: None, tmp_path: Path) -> None:
    many = 2 + int(capacity().cpus)
    at_once = ray.remote(num_cpus=0.01)(process_beside_others)
    idle = set(ray.get([at_once.remote(tmp_path, many) for _ in range(many)]))
    time.sleep(4)  # Ray's own patience is one second
    assert len(idle) == many
    assert all(map(psutil.pid_exists, idle))


def process_beside_others(folder: Path, many: int) -> int:
    """Its process, once so many of them are at work at the same time."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < many:
        time.sleep(0.1)
    return os.getpid()


AGAIN = "; run the same command again"


@pytest.mark.parametrize("of_a_worker", [False, True])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError(ErrorKind.PERMISSION, "no"), f"the run broke off: no; mend that{AGAIN}"),
        (InputError("--bundle: no\nmore"), f"the run broke off: --bundle: no; mend that{AGAIN}"),
        (OSError("disk full"), f"the run broke off: disk full; mend that{AGAIN}"),
        (TypeError("a bug"), None),
    ],
)
def test_what_a_store_or_a_disk_broke_off_is_one_line_and_a_bug_is_not(
    error: Exception, said: str | None, of_a_worker: bool
) -> None:
    reached = ray.exceptions.RayTaskError("f", "its traceback", error) if of_a_worker else error
    told = broke_off(reached)
    assert (None if told is None else str(told)) == said


def test_what_broke_off_in_ray_or_was_told_by_a_worker_is_one_line() -> None:
    gone = broke_off(ray.exceptions.WorkerCrashedError())
    assert str(gone).startswith("the run broke off in Ray, which tells more in its logs (Worker")
    worker = ray.exceptions.RayTaskError("f", "its traceback", RunFailedError(f"it is gone{AGAIN}"))
    assert str(broke_off(worker)) == f"it is gone{AGAIN}"
    assert broke_off(RunFailedError("it is gone")) is None
