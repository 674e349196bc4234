"""Lease: one run at a time, and no dead run in the way."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage import lease
from lesioncam.storage.lease import LEASE_FILE, Holder, Lease, check_worker
from lesioncam.storage.store import Store
from lesioncam.storage.uris import open_store

ELSEWHERE = Holder("run-0", "other-host", "other-boot/1", 1, 1, 0.0)


def write_lease(store: Store, holder: Holder) -> None:
    store.write(LEASE_FILE, json.dumps(asdict(holder)).encode())


def take_over(store: Store, holder: Holder) -> None:
    """Replace a lease that is being renewed, as another run does: no renewal gets in between."""
    while not store.swap(LEASE_FILE, store.read(LEASE_FILE), json.dumps(asdict(holder)).encode()):
        pass


def holder_of(store: Store) -> Holder:
    return Holder(**json.loads(store.read(LEASE_FILE)))


def test_a_second_run_is_refused_with_the_holders_name(location: str) -> None:
    store = open_store(location)
    with Lease(store, "run-1"):
        first = holder_of(store)
        with pytest.raises(InputError, match=rf"run run-1 \(process {first.pid} on {first.host}"):
            Lease(store, "run-2").__enter__()
        assert holder_of(store) == first
    assert not store.exists(LEASE_FILE)
    with Lease(store, "run-2") as second:
        second.check()
        assert holder_of(store).run_id == "run-2"


def test_of_many_that_try_at_once_one_gets_it(location: str) -> None:
    store = open_store(location)
    got: list[str] = []
    done = threading.Barrier(8)

    def run(name: str) -> None:
        try:
            with Lease(store, name):
                got.append(name)
                done.wait()
        except (InputError, RunFailedError):
            done.wait()

    threads = [threading.Thread(target=run, args=(f"run-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_dead_process_on_this_machine_is_replaced_at_once(location: str) -> None:
    store = open_store(location)
    with Lease(store, "run-1"):
        mine = holder_of(store)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    write_lease(store, replace(mine, pid=process.pid))
    with Lease(store, "run-2"):
        assert holder_of(store).run_id == "run-2"


def test_a_process_number_that_was_used_again_is_not_the_holder(location: str) -> None:
    store = open_store(location)
    with Lease(store, "run-1"):
        mine = holder_of(store)
    write_lease(store, replace(mine, process_started=mine.process_started - 1))
    with Lease(store, "run-2"):
        assert holder_of(store).run_id == "run-2"


def test_elsewhere_a_lease_holds_until_it_runs_out(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(location)
    monkeypatch.setattr("lesioncam.storage.lease.time.time", lambda: 1000.0)
    write_lease(store, replace(ELSEWHERE, until=1000.5))
    with pytest.raises(InputError, match=r"run run-0 \(process 1 on other-host"):
        Lease(store, "run-1").__enter__()
    write_lease(store, replace(ELSEWHERE, until=999.5))
    with Lease(store, "run-1"):
        assert holder_of(store).until == 1000.0 + lease.LEASE_SECONDS


def test_a_process_that_proc_does_not_show_is_alive_until_its_lease_runs_out(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError(f"{number} to {pid}: of another user")

    store = open_store(location)
    with Lease(store, "run-1"):
        mine = holder_of(store)
    monkeypatch.setattr(lease, "_process_started", lambda _: None)
    assert not mine.is_alive()
    monkeypatch.setattr("os.kill", kill)
    assert mine.is_alive()
    assert not replace(mine, until=time.time() - 1).is_alive()


def test_a_lease_that_makes_no_sense_blocks_nobody(location: str) -> None:
    store = open_store(location)
    store.write(LEASE_FILE, b"{half")
    with Lease(store, "run-1"):
        assert holder_of(store).run_id == "run-1"


def test_it_is_renewed_and_given_back(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.02)
    store = open_store(location)
    with Lease(store, "run-1") as held:
        first = holder_of(store).until
        deadline = threading.Event()
        for _ in range(500):
            if holder_of(store).until > first:
                break
            deadline.wait(0.02)
        assert holder_of(store).until > first
        held.check()
    assert not store.exists(LEASE_FILE)


def test_a_run_that_lost_its_lease_stops_and_leaves_the_new_holder_alone(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.02)
    store = open_store(location)
    with Lease(store, "run-1") as held:
        take_over(store, ELSEWHERE)
        held._renewer.join(10)
        with pytest.raises(RunFailedError, match="run the same command again"):
            held.check()
    assert holder_of(store) == ELSEWHERE


def test_a_store_that_was_away_too_long_ends_the_run(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(location)
    with Lease(store, "run-1") as held:
        held.check()
        later = time.time() + lease.LEASE_SECONDS + 1
        with monkeypatch.context() as patch:
            patch.setattr("lesioncam.storage.lease.time.time", lambda: later)
            with pytest.raises(RunFailedError, match="expired"):
                held.check()


@pytest.mark.parametrize(
    ("standing", "expected", "done"),
    [(None, None, True), (b"a", b"a", True), (b"a", None, False), (b"a", b"b", False)],
)
def test_swap(location: str, standing: bytes | None, expected: bytes | None, done: bool) -> None:
    store = open_store(location)
    if standing is not None:
        store.write("x/file", standing)
    assert store.swap("x/file", expected, b"new") is done
    if standing is not None or done:
        assert store.read("x/file") == (b"new" if done else standing)
    assert [entry.uri for entry in store.entries()] == [f"{store.uri}/x/file"]


def test_swap_of_a_file_that_is_gone(location: str) -> None:
    store = open_store(location)
    assert not store.swap("file", b"a", b"new")
    assert not store.exists("file")


def test_a_worker_writes_only_while_its_run_has_the_output(location: str) -> None:
    output = open_store(location)
    with pytest.raises(RunFailedError, match="run run-1 no longer holds"):
        check_worker(output, "run-1")
    with Lease(output, "run-1"):
        check_worker(output, "run-1")
        with pytest.raises(RunFailedError, match="run run-2 no longer holds"):
            check_worker(output, "run-2")


def test_a_run_that_has_all_its_parts_refuses_its_workers(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.02)
    output = open_store(location)
    with Lease(output, "run-1") as held:
        held.stop_workers()
        stopped = holder_of(output).until
        while holder_of(output).until == stopped:
            time.sleep(0.02)
        with pytest.raises(RunFailedError, match="run run-1 has all its parts"):
            check_worker(output, "run-1")
        held.confirm()


def test_only_the_store_knows_that_another_run_has_taken_over(location: str) -> None:
    output = open_store(location)
    with Lease(output, "run-1") as held:
        held.confirm()
        write_lease(output, ELSEWHERE)
        held.check()
        with pytest.raises(RunFailedError, match="run run-1 no longer holds"):
            held.confirm()
        with pytest.raises(RunFailedError, match="expired"):
            held.stop_workers()


def test_a_renewal_whose_answer_was_lost_is_our_own(location: str) -> None:
    output = open_store(location)
    with Lease(output, "run-1") as lease:
        before = lease._held
        assert lease._write(lease._held)
        lease._held = before
        assert not lease._write(lease._held)
        assert lease._renew_unanswered()
        lease.check()
