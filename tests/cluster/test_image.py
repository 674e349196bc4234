import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lesioncam.cluster import _KEEP_IDLE
from tests.cluster.image import ROOT, build, steps

DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("needs hadolint, which has no build for this machine")
    said = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    assert said.stdout == ""


def test_every_dependency_is_pinned_within_what_the_package_asks_for() -> None:
    lines = (ROOT / "cluster" / "requirements.txt").read_text().split()
    pins = {pin.name: pin for pin in map(Requirement, lines)}
    asked = [Requirement(line) for line in requires("lesioncam") or []]
    asked = [one for one in asked if one.marker is None]
    assert pins.keys() == {one.name for one in asked}
    for one in asked:
        pin = pins[one.name]
        (version,) = re.fullmatch(r"==([\d.]+)", str(pin.specifier)).groups()  # type: ignore[union-attr]
        assert version in one.specifier, pin
        assert pin.extras == one.extras, pin


def test_its_nodes_keep_idle_processes_as_a_ray_of_ones_own_does() -> None:
    assert dict(rest.split("=") for name, rest in steps() if name == "ENV") == _KEEP_IDLE


def test_it_runs_as_nobody_special() -> None:
    assert steps()[-1] == ("USER", "1000")


@pytest.mark.slow
def test_its_steps_make_an_environment_that_has_the_jobs(tmp_path: Path) -> None:
    """On top of this environment, so that what is pinned need not be downloaded again."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    workdir = tmp_path / "work"
    workdir.mkdir()
    build(environment, workdir)

    ask = "import lesioncam; print(lesioncam.__file__)"
    python = str(environment / "bin" / "python")
    clean = {"PATH": os.environ["PATH"]}  # no PYTHONPATH that leads back here
    where = subprocess.run(
        [python, "-c", ask], cwd="/", env=clean, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(environment))
    for job in ("kuberay.py", "score.py", "train.py"):
        said = subprocess.run(
            [python, f"jobs/{job}", "--help"],
            cwd=workdir,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert "usage: lesioncam" in said.stdout
