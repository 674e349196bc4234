"""Build the Dockerfile without Docker: run its COPY and RUN steps in a virtual environment.

    python -m tests.cluster.image FOLDER

makes a new environment in FOLDER and runs every step there, including downloads.
"""

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each with its arguments."""
    text = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def build(environment: Path, workdir: Path) -> None:
    """Run the COPY and RUN steps.

    Args:
        environment: a virtual environment, in place of the base image.
        workdir: an empty directory, in place of the image's.

    Raises:
        CalledProcessError: a RUN step failed.
    """
    path = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin"}
    for name, rest in steps():
        if name == "COPY":
            *sources, target = re.sub(r"--\S+ ", "", rest).split()
            for source in sources:
                copy(ROOT / source, workdir / target, whole=len(sources) == 1)
        elif name == "RUN":
            subprocess.run(["bash", "-euc", rest], cwd=workdir, env=path, check=True)


def copy(source: Path, target: Path, *, whole: bool) -> None:
    """Copy as COPY does: a file into a directory, a directory's contents to one of that name."""
    if source.is_dir() and whole:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    venv.create(folder / "environment", with_pip=True)
    (folder / "work").mkdir()
    build(folder / "environment", folder / "work")
