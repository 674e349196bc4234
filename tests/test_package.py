"""The wheel holds the library and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_library_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "wheel"
    for folder in ("lesioncam", "jobs", "benchmarks", "tests"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True)

    (wheel,) = target.iterdir()
    files = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(source)) for path in (source / "lesioncam").rglob("*.py")}
    own = {name for name in files if ".dist-info/" not in name}
    names = ("report.css", "report.html", "report.js", "subgroups.html")
    page = {f"lesioncam/evaluation/page_files/{name}" for name in names}
    assert own == modules | page | {"lesioncam/py.typed"}
