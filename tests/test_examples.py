"""Examples: each script runs as its docstring says, on synthetic images and a tiny bundle.

The one that trains runs in `tests/cluster/test_cluster.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lesioncam.demo import draw_images
from tests.conftest import CLASSES

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    draw_images(folder, 24, seed=0)
    return folder / "images"


def run_example(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_image(images: Path, bundle_uri: str, tmp_path: Path) -> None:
    lines = run_example(
        "one_image.py", bundle_uri, images / "DRAWN_00000.jpg", cwd=tmp_path
    ).splitlines()
    assert [line.split()[1] for line in lines[:-1]] == list(CLASSES)
    assert lines[-1].startswith("the lesion's box: x ")


def test_a_folder(images: Path, bundle_uri: str, tmp_path: Path) -> None:
    assert run_example("folder.py", bundle_uri, images, cwd=tmp_path).split()[-2:] == ["ok", "24"]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 24
    with Image.open(tmp_path / "overlay.png") as sheet:
        assert sheet.width > 1000
