import os
import time
from pathlib import Path

import psutil
import pytest
import ray

from lesioncam.cluster import Capacity, Node, can_grow, capacity


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
