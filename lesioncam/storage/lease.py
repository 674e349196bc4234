"""Lease: one run at a time on an output or a bundle, and a dead run blocks nobody.

`_lesioncam/lease.json` says whose run is at work and until when. Whoever holds it writes it anew
every few seconds; taking and renewing it are conditional writes, so of two runs that try at once
one gets it. On the same machine a holder whose process is gone is followed at once, elsewhere when
its time has run out; that compares two machines' clocks, which may differ by some seconds.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.storage.store import Store, read_if_there

LEASE_FILE = "_lesioncam/lease.json"
LEASE_SECONDS = 60.0
_RENEW_SECONDS = 15.0
_ATTEMPTS = 5  # to take a lease that others take and give back meanwhile


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run_id: of the run.
        host: the machine's name.
        machine: what else tells it apart: its boot and its space of process numbers.
        pid: of the process.
        process_started: in clock ticks since that boot; a number may be used again.
        until: when the lease runs out if it is not renewed, in seconds since 1970.
    """

    run_id: str
    host: str
    machine: str
    pid: int
    process_started: int
    until: float

    def is_alive(self) -> bool:
        """Whether the run may still be at work."""
        if self.machine and self.machine == _machine() and self.host == socket.gethostname():
            started = _process_started(self.pid)
            if started is not None or not _hidden(self.pid):
                return started == self.process_started
        return time.time() < self.until


class LeaseLostError(RunFailedError):
    """Another run has what a run was at work on, or nobody."""


class Lease:
    """Holds an output for one run, as a context.

    Args:
        output: where the scores, or the bundle, go.
        run_id: of the run.
        flag: that named the output, for messages.

    Raises:
        InputError: on entering, another run is at work there.
    """

    def __init__(self, output: Store, run_id: str, flag: str = "--output"):
        self.run_id = run_id
        self._output, self._flag = output, flag
        self._held = b""
        self._until = 0.0
        self._over = threading.Event()
        self._lost = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        for _ in range(_ATTEMPTS):
            if self._write(refuse_other_run(self._output, self._flag)):
                self._renewer.start()
                return self
        raise RunFailedError(
            f"{self._flag}: {self._output.uri} is being taken by others; try again"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._renewer.join()
        with suppress(LesioncamError):  # the store may be away: then the lease runs out
            if not self._lost.is_set() and self._output.read_quickly(LEASE_FILE) == self._held:
                self._output.delete(LEASE_FILE)

    def check(self) -> None:
        """Make sure that the output is still this run's.

        Raises:
            RunFailedError: it could not be renewed in time, or another run has it.
        """
        if self._lost.is_set() or time.time() > self._until:
            raise RunFailedError(
                f"this run's lease on {self._output.uri} ran out, as it could not be renewed in "
                f"time; run the same command again"
            )

    def _write(self, standing: bytes | None) -> bool:
        """Take or renew the lease, if what stands there is still `standing`."""
        until = time.time() + LEASE_SECONDS
        holder = Holder(
            self.run_id, socket.gethostname(), _machine(), os.getpid(),
            _process_started(os.getpid()) or 0, until,
        )  # fmt: skip
        content = json.dumps(asdict(holder)).encode()
        if not self._output.swap(LEASE_FILE, standing, content):
            return False
        self._held, self._until = content, until
        return True

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_SECONDS):
            try:
                if not (self._write(self._held) or self._renew_unanswered()):
                    self._lost.set()
                    return
            except LesioncamError:
                continue  # the store is away for a moment; `check` knows when it was too long

    def _renew_unanswered(self) -> bool:
        """Renew once more where our own last renewal stands, though its answer was lost."""
        standing = self._output.read_quickly(LEASE_FILE)
        holder = _parse(standing)
        return holder is not None and holder.run_id == self.run_id and self._write(standing)


def refuse_other_run(output: Store, flag: str = "--output") -> bytes | None:
    """Refuse an output, which `flag` named, that another run is at work on.

    Returns:
        What stands there: None, or what a run left that died.

    Raises:
        InputError: with that run's id, process and machine.
    """
    standing = read_if_there(output, LEASE_FILE)
    holder = _parse(standing)
    if holder is not None and holder.is_alive():
        raise InputError(
            f"{flag}: {output.uri} is being written by run {holder.run_id} (process {holder.pid} "
            f"on {holder.host}); wait for it or stop it, or name another place. If it died, it "
            f"is followed in {max(0, holder.until - time.time()):.0f} s"
        )
    return standing


def check_holder(output: Store, run_id: str) -> None:
    """Make sure that a run still has the output; its workers may outlive it on other machines.

    Raises:
        LeaseLostError: nobody has it, or another run.
        RunFailedError: its store cannot be reached.
        InputError: its store refuses.
    """
    holder = _parse(read_if_there(output, LEASE_FILE))
    if holder is None or holder.run_id != run_id:
        raise LeaseLostError(
            f"{output.uri} is not run {run_id}'s any more; run the same command again"
        )


def _parse(content: bytes | None) -> Holder | None:
    """The holder; None where nobody holds it, or what is there cannot be understood."""
    if content is None:
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    """This boot and this space of process numbers; empty where they cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _process_started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])


def _hidden(pid: int) -> bool:
    """Whether there is such a process of another user, which /proc may be mounted not to show."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
