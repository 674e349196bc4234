"""A night: `lesioncam score` as a process of its own, what is done to it, and what it left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq

from lesioncam.storage.results import SUCCESS, Results
from lesioncam.storage.uris import read_uri

_MARK = "LESIONCAM_NIGHT"
_PATIENCE = 300  # seconds


@dataclass
class Night:
    """One output, and the runs on it.

    Attributes:
        images: where the images are.
        bundle: the trained model.
        output: where the scores go.
        log: where the runs' output goes.
        environment: on top of this process's.
        codes: exit codes of the runs so far.
    """

    images: str
    bundle: str
    output: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)

    def start(self, wrapper: Iterable[str] = (), **environment: str) -> "subprocess.Popen[bytes]":
        """Start a run."""
        command = [
            *wrapper, sys.executable, "-m", "lesioncam", "score", "--images", self.images,
            "--bundle", self.bundle, "--output", self.output,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment, **environment, _MARK: self.output},
            )

    def end(self, run: "subprocess.Popen[bytes]") -> int:
        """Wait for its end."""
        try:
            self.codes.append(run.wait(_PATIENCE))
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        return self.codes[-1]

    def run(self) -> int:
        """A whole run, undisturbed."""
        return self.end(self.start())

    def processes(self, name: str) -> list[psutil.Process]:
        """Ray's processes of this night whose title has `name` in it."""
        found = []
        for process in psutil.process_iter():
            try:
                title = " ".join(process.cmdline())
                if name in title and process.environ().get(_MARK) == self.output:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, name: str, run: "subprocess.Popen[bytes]") -> bool:
        """Kill one of them, waiting for it as long as the run lives; False if there was none."""
        while run.poll() is None:
            processes = self.processes(name)
            if processes:
                try:
                    random.choice(processes).kill()
                except psutil.Error:
                    continue
                return True
            time.sleep(0.01)  # some, as those that write a part, have a title but for a moment
        return False

    def await_silence(self) -> None:
        """Wait until no process of it is left: those of a killed run find out one by one."""
        deadline = time.monotonic() + _PATIENCE
        while left := self.processes(""):
            if time.monotonic() > deadline:
                raise RuntimeError(f"still there: {left}")
            time.sleep(0.1)

    def rows(self) -> pd.DataFrame:
        """Every row that stands in the output, older ones too."""
        results = Results(self.output)
        filesystem, root = results.store.arrow()
        parts = [
            pq.read_table(f"{root}/{name}", filesystem=filesystem).to_pandas()
            for name in results.parts()
        ]
        return pd.concat(parts) if parts else pd.DataFrame({"uri": []})

    def durable(self) -> int:
        """How many rows stand there."""
        return sum(Results(self.output).sizes().values())

    def window(self) -> int:
        """How many images its last run may have had under way."""
        store = Results(self.output).store.join("_lesioncam/runs")
        runs = sorted(entry.uri for entry in store.entries() if entry.uri.endswith("/run.json"))
        window: int = json.loads(read_uri(runs[-1]))["plan"]["window"]
        return window

    def is_complete(self) -> bool:
        """Whether the output says so."""
        return Results(self.output).store.exists(SUCCESS)


@dataclass(frozen=True)
class Findings:
    """What a disturbed night left, against an undisturbed one."""

    lost: int
    doubled: int
    different: int


def compare(rows: pd.DataFrame, undisturbed: pd.DataFrame) -> Findings:
    """Compare the rows that stand with those that should; probabilities to 1e-4."""
    there = rows.drop_duplicates("uri").set_index("uri")
    expected = undisturbed.set_index("uri")
    common = expected.index.intersection(there.index)
    columns = [name for name in undisturbed.columns if "p_" in str(name)]
    here, wanted = there.loc[common], expected.loc[common]
    same_kind = here["error_kind"].fillna("") == wanted["error_kind"].fillna("")
    close = np.isclose(here[columns], wanted[columns], rtol=0, atol=1e-4, equal_nan=True)
    return Findings(
        lost=len(expected) - len(common),
        doubled=int(rows["uri"].duplicated().sum()) + len(there.index.difference(expected.index)),
        different=int((~(same_kind.to_numpy() & close.all(axis=1))).sum()),
    )
