import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from lesioncam import cluster
from lesioncam.address import can_grow, check_ray
from lesioncam.cluster import (
    Capacity,
    Node,
    as_run_error,
    capacity,
    connected,
    probe_hardware,
)
from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.store import StoreError
from lesioncam.vision.hardware import Hardware


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
    assert Capacity(tuple(Node(*node) for node in nodes)).cpu_share(workers, gpu=gpu) == share


def test_a_local_ray_has_this_machines_cores_and_cannot_grow(local_ray: None) -> None:
    here = capacity()
    assert here.cpus >= 2
    assert here.cpus_per_gpu is None
    assert not can_grow()


def test_a_node_answers_what_it_computes_on(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = probe_hardware(gpu=False)
    assert here.device == "cpu"
    two = 2 * ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: two)  # so that another process is asked
    assert probe_hardware(gpu=False) == here


def test_nodes_have_in_common_what_each_of_them_answers(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = 2 * [node for node in ray.nodes() if node["Alive"]]
    monkeypatch.setattr(ray, "nodes", lambda: two)
    answers = [Hardware("cpu", ("int8", "float32")), Hardware("cpu", ("float32",))]
    monkeypatch.setattr(ray, "get", lambda asked, **_: answers[: len(set(asked))])
    assert probe_hardware(gpu=False) == Hardware("cpu", ("float32",))


def test_idle_processes_are_kept_for_the_next_task(local_ray: None, tmp_path: Path) -> None:
    count = 2 + int(capacity().cpus)
    at_once = ray.remote(num_cpus=0.01)(process_beside_others)
    idle = set(ray.get([at_once.remote(tmp_path, count) for _ in range(count)]))
    time.sleep(4)  # Ray's default keeps them for one second
    assert len(idle) == count
    assert all(map(psutil.pid_exists, idle))


def process_beside_others(folder: Path, count: int) -> int:
    """This process's id, once `count` of them run at the same time."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.1)
    return os.getpid()


def test_a_sigterm_handler_that_python_did_not_set_is_replaced_by_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(ray, "shutdown", lambda: None)
        patch.setattr(cluster, "_start", lambda: None)
        patch.setattr(signal, "getsignal", lambda _: None)  # as in a program that embeds Python
        with connected():
            pass
    try:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreError(ErrorKind.PERMISSION, "no"), "no"),
        (InputError("--bundle: no\nmore"), "--bundle: no"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_a_store_or_disk_that_fails_during_a_run_is_one_line(
    error: Exception, message: str, in_worker: bool
) -> None:
    reached = ray.exceptions.RayTaskError("f", "its traceback", error) if in_worker else error
    expected = f"the run failed: {message}; fix that and run the same command again"
    assert str(as_run_error(reached)) == expected


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_bug_keeps_its_traceback(in_worker: bool) -> None:
    bug = TypeError("a bug")
    reached = ray.exceptions.RayTaskError("f", "its traceback", bug) if in_worker else bug
    assert as_run_error(reached) is None


def test_an_error_of_ray_is_one_line() -> None:
    error = as_run_error(ray.exceptions.WorkerCrashedError())
    assert str(error).startswith("the run failed in Ray (WorkerCrashedError; Ray's logs have")


def test_a_workers_run_error_is_passed_on_without_its_traceback() -> None:
    message = "it is gone; run the same command again"
    worker = ray.exceptions.RayTaskError("f", "its traceback", RunFailedError(message))
    assert str(as_run_error(worker)) == message
    assert as_run_error(RunFailedError(message)) is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"^RAY_ADDRESS: no Ray cluster answers at {address};"):
        check_ray()


@pytest.fixture
def not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were not connected to Ray, and without its shutdown."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


def fails(error: Exception) -> Callable[..., None]:
    def init(**_: object) -> None:
        os.write(2, b"a line of Ray's core for each attempt\n")
        raise error

    return init


@pytest.mark.parametrize(
    "error", [RuntimeError("no cluster ID"), ray.exceptions.AuthenticationError("no token")]
)
@pytest.mark.usefixtures("not_connected")
def test_a_cluster_that_refuses_the_connection_is_one_line_that_names_the_token(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", fails(error))
    message = r"^RAY_ADDRESS: cannot connect .* at auto; .*, set RAY_AUTH_MODE=token, and RAY_AUTH"
    with pytest.raises(InputError, match=message), connected():
        pass
    assert "a line of Ray's core" not in capfd.readouterr().err


@pytest.mark.usefixtures("not_connected")
def test_a_local_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fails(Exception("timed out during startup")))
    message = r"^Ray did not start on this machine \(timed out during startup\); run the same"
    with pytest.raises(RunFailedError, match=message), connected():
        pass
    monkeypatch.setattr(ray, "init", fails(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"), connected():
        pass


@pytest.mark.usefixtures("not_connected")
def test_only_rays_line_about_its_log_level_is_dropped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def init(**_: object) -> None:
        os.write(2, b"logging.cc:303: Set ray log level from RAY_BACKEND_LOG_LEVEL to 3\nanother\n")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with connected():
        pass
    printed = capfd.readouterr().err
    assert "another\n" in printed
    assert "RAY_BACKEND_LOG_LEVEL" not in printed
