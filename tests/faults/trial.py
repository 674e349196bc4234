"""A trial: `lesioncam score` in its own process, disturbed while it runs, and what it wrote."""

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

_MARK = "LESIONCAM_TRIAL"  # in the environment of every process of a trial
_TIMEOUT_S = 300


@dataclass
class Trial:
    """One output, and the runs that write it.

    Attributes:
        images: where the images are.
        bundle: the trained model.
        output: where the scores go.
        log: file for the runs' output.
        environment: on top of this process's.
        exit_codes: of the runs so far.
    """

    images: str
    bundle: str
    output: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

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

    def wait(self, run: "subprocess.Popen[bytes]") -> int:
        """Wait until a run ends; returns its exit code."""
        try:
            self.exit_codes.append(run.wait(_TIMEOUT_S))
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        return self.exit_codes[-1]

    def run(self) -> int:
        """Run once, undisturbed; returns the exit code."""
        return self.wait(self.start())

    def processes(self, name: str = "") -> list[psutil.Process]:
        """This trial's processes with `name` in their command line."""
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
        """Kill one process of that name as soon as there is one; False if the run ends before."""
        while run.poll() is None:
            processes = self.processes(name)
            if processes:
                try:
                    random.choice(processes).kill()
                except psutil.Error:
                    continue
                return True
            time.sleep(0.01)  # a process that writes a part has that title only for a moment
        return False

    def wait_for_processes(self) -> None:
        """Wait until all processes have ended: those of a killed run notice one by one."""
        deadline = time.monotonic() + _TIMEOUT_S
        while remaining := self.processes():
            if time.monotonic() > deadline:
                raise RuntimeError(f"still running: {remaining}")
            time.sleep(0.1)

    def rows(self) -> pd.DataFrame:
        """Every row of every part in the output, superseded ones too."""
        results = Results(self.output)
        filesystem, root = results.store.arrow()
        parts = [
            pq.read_table(f"{root}/{name}", filesystem=filesystem).to_pandas()
            for name in results.parts()
        ]
        return pd.concat(parts) if parts else pd.DataFrame({"uri": []})

    def durable(self) -> int:
        """Number of rows in the output."""
        return len(self.rows())

    def window(self) -> int:
        """Maximum number of images that the last run had in progress at once."""
        store = Results(self.output).store.join("_lesioncam/runs")
        runs = sorted(entry.uri for entry in store.entries() if entry.uri.endswith("/run.json"))
        window: int = json.loads(read_uri(runs[-1]))["plan"]["window"]
        return window

    def is_complete(self) -> bool:
        """Whether the output has `_SUCCESS`."""
        return Results(self.output).store.exists(SUCCESS)


@dataclass(frozen=True)
class Findings:
    """Differences between a disturbed output and an undisturbed one, in images."""

    lost: int
    doubled: int
    different: int


def compare(rows: pd.DataFrame, undisturbed: pd.DataFrame) -> Findings:
    """Compare the rows of an output with those of an undisturbed run; probabilities to 1e-4."""
    found = rows.drop_duplicates("uri").set_index("uri")
    expected = undisturbed.set_index("uri")
    common = expected.index.intersection(found.index)
    columns = [name for name in undisturbed.columns if "p_" in str(name)]
    actual, wanted = found.loc[common], expected.loc[common]
    same_kind = actual["error_kind"].fillna("") == wanted["error_kind"].fillna("")
    close = np.isclose(actual[columns], wanted[columns], rtol=0, atol=1e-4, equal_nan=True)
    return Findings(
        lost=len(expected) - len(common),
        doubled=int(rows["uri"].duplicated().sum()) + len(found.index.difference(expected.index)),
        different=int((~(same_kind.to_numpy() & close.all(axis=1))).sum()),
    )
