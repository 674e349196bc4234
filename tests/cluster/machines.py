"""Several machines simulated on one, each with its own address, disk and processes.

A machine is a set of Linux namespaces. It has a name; its network is a veth pair on a bridge; its
`/tmp` and `/dev/shm` are empty; it sees neither the project's package nor other machines'
processes.
Cutting its power ends all its processes at once. Needs root.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_RUN = os.getpid() % 250  # so that two concurrent runs do not collide
NETWORK = f"10.203.{_RUN}"
HERE = f"{NETWORK}.1"  # this machine's address in that network
_BRIDGE = f"lc-br-{_RUN}"
_EMPTY = ("/tmp", "/dev/shm")  # inside a machine
_PRIVATE = (*_EMPTY, str(ROOT / "lesioncam"))


def unsupported() -> str | None:
    """Why machines cannot be simulated here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, to make network namespaces"
    for path in map(Path.resolve, (ROOT, Path(sys.prefix), Path(sys.base_prefix))):
        for empty in filter(path.is_relative_to, _EMPTY):
            return f"needs {path} elsewhere: a machine has its own {empty}"
    missing = [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    probe = [
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--uts",
        "--fork",
        "ip",
        "link",
        "add",
        "probe",
        "type",
        "bridge",
    ]
    allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return None if allowed else "namespaces and bridges are not allowed here"


@dataclass
class Machine:
    """One machine.

    Attributes:
        name: of its network namespace.
        address: its IP address.
        process: its first process, which ends with the machine.
    """

    name: str
    address: str
    process: "subprocess.Popen[bytes]"

    def cut_power(self) -> None:
        """Unplug it and kill all its processes, without closing connections."""
        _unplug(self.name)
        self.process.kill()  # `unshare --kill-child` also kills the rest
        self.process.wait()

    def is_on(self) -> bool:
        """Whether its process is running."""
        return self.process.poll() is None

    def processes(self, name: str) -> Iterator[psutil.Process]:
        """Its processes with `name` in their command line."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                if name in " ".join(process.cmdline()):
                    yield process


class Machines:
    """The network, and the machines on it.

    Args:
        logs: a directory for their output.
    """

    def __init__(self, logs: Path):
        self._logs, self._last, self._all = logs, 1, list[Machine]()

    def __enter__(self) -> "Machines":
        subprocess.run(["ip", "link", "delete", _BRIDGE], capture_output=True, check=False)
        # With a fixed address: by default it takes a cable's, and changes when that is unplugged.
        _ip("link", "add", _BRIDGE, "address", f"02:00:00:00:00:{_RUN:02x}", "type", "bridge")
        _ip("address", "add", f"{HERE}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        return self

    def __iter__(self) -> Iterator[Machine]:
        return (machine for machine in self._all if machine.is_on())

    def __exit__(self, *_: object) -> None:
        for machine in self:
            machine.cut_power()
        _ip("link", "delete", _BRIDGE)

    def start(self, *command: str, environment: Mapping[str, str]) -> Machine:
        """Start a machine that runs a command; `{address}` in it stands for the machine's address.

        Args:
            command: the command and its arguments.
            environment: its whole environment.
        """
        self._last += 1
        number, address = self._last, f"{NETWORK}.{self._last}"
        name = f"lesioncam-{_RUN}-{number}"
        outside, inside = f"lc-out-{_RUN}-{number}", f"lc-in-{_RUN}-{number}"
        _unplug(name)
        _ip("netns", "add", name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        _ip("link", "set", outside, "master", _BRIDGE, "up")
        _ip("link", "set", inside, "netns", name)
        _ip("-n", name, "address", "add", f"{address}/24", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        private = "; ".join(f"mount -t tmpfs none {folder}" for folder in _PRIVATE)
        named = (
            f"hostname {name}; echo 127.0.0.1 localhost > /tmp/hosts; "
            f"echo {address} {name} >> /tmp/hosts; mount --bind /tmp/hosts /etc/hosts"
        )
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--uts", "--fork",
                    "--kill-child", "--mount-proc", "sh", "-c",
                    f'set -e; {private}; {named}; cd /; exec "$@"', "sh",
                    *(part.replace("{address}", address) for part in command),
                ],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        machine = Machine(name, address, process)
        self._all.append(machine)
        return machine


def _unplug(name: str) -> None:
    """Remove a machine's cable and network, if they exist."""
    cable = name.replace("lesioncam", "lc-out")
    for command in (["ip", "link", "delete", cable], ["ip", "netns", "delete", name]):
        subprocess.run(command, capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
