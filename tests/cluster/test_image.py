import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lesioncam.cluster import _KEEP_IDLE
from tests.cluster.image import ROOT, build, steps

DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("needs hadolint, which has no build for this machine")
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    assert linted.stdout == ""


def test_every_dependency_is_pinned_to_a_version_that_the_package_allows() -> None:
    lines = (ROOT / "cluster" / "requirements.txt").read_text().split()
    pins = {pin.name: pin for pin in map(Requirement, lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [Requirement(line) for line in project["dependencies"]]
    assert pins.keys() == {one.name for one in required}
    for one in required:
        pin = pins[one.name]
        (version,) = re.fullmatch(r"==([\d.]+)", str(pin.specifier)).groups()  # type: ignore[union-attr]
        assert version in one.specifier, pin
        assert pin.extras == one.extras, pin


def test_its_nodes_keep_idle_processes_as_a_local_ray_does() -> None:
    assert dict(rest.split("=") for name, rest in steps() if name == "ENV") == _KEEP_IDLE


def test_it_does_not_run_as_root() -> None:
    assert steps()[-1] == ("USER", "1000")


@pytest.mark.slow
def test_its_steps_make_an_environment_that_has_the_jobs(tmp_path: Path) -> None:
    """On top of this environment, so that pinned packages are not downloaded again."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    workdir = tmp_path / "work"
    workdir.mkdir()
    build(environment, workdir)

    code = "import lesioncam; print(lesioncam.__file__)"
    python = str(environment / "bin" / "python")
    clean = {"PATH": os.environ["PATH"]}  # no PYTHONPATH to this directory
    where = subprocess.run(
        [python, "-c", code], cwd="/", env=clean, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(environment))
    for job in ("kuberay.py", "score.py", "train.py"):
        done = subprocess.run(
            [python, f"jobs/{job}", "--help"],
            cwd=workdir,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"usage: python jobs/{job}" in done.stdout
