"""Report: figures measured in several rounds, and the files they are written to."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

_NAMED = ("lesioncam", "ray", "torch", "pyarrow")


@dataclass(frozen=True)
class Rounds:
    """One figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def __str__(self) -> str:
        spread = f" ({min(self.values):.2f} to {max(self.values):.2f})"
        return f"{self.median:.2f}{spread if len(self.values) > 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        """The median, and what it is the median of."""
        return {"median": self.median, "values": list(self.values)}


def steady_rate(few: int, few_seconds: float, many: int, many_seconds: float) -> float:
    """Images/s without start-up, from how much longer more images take.

    What happens once in a run, however many images there are, cancels out: starting, loading the
    networks, filling and emptying the pipeline, and the work at the end.

    Raises:
        ValueError: more images did not take longer.
    """
    if many_seconds <= few_seconds:
        raise ValueError(
            f"{many} images took {many_seconds:.1f} s, and {few} took {few_seconds:.1f} s: too few "
            f"images for a rate; measure more"
        )
    return (many - few) / (many_seconds - few_seconds)


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is of names, the others of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def machine(*libraries: str, **facts: str) -> dict[str, Any]:
    """The hardware and the versions of libraries, with further `libraries` and `facts`."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        **facts,
        "python": platform.python_version(),
        **{name: version(name) for name in (*_NAMED, *libraries)},
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """The same as a line of text."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def write(folder: Path, name: str, content: Mapping[str, Any], text: str) -> None:
    """Write `NAME.json` and `NAME.md`, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)


def _processor() -> str:
    """The processor's name, as Linux reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
