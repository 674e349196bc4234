"""Files as people really have them: each has its right outcome, in the documentation too."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesioncam.predict import load
from lesioncam.vision.decode import decode
from lesioncam.vision.formats import readable_formats
from tests.conftest import needs_shared
from tests.docs_page import read_section
from tests.wild import EXPECTED, FOLDER, PAGE, SIZE, outcome, table

pytestmark = needs_shared

OPTIONAL = {"heic": "HEIF", "j2k": "JPEG2000"}
needs_optional = pytest.mark.skipif(
    not set(OPTIONAL.values()) <= set(readable_formats()),
    reason="needs libraries that read HEIC and JPEG 2000",
)
OK = [name for name, (_, expected) in EXPECTED.items() if expected.startswith("ok")]


def named(names: list[str]) -> list[object]:
    """The names as parameters; those of an optional format are skipped where it is not read."""
    return [
        pytest.param(name, marks=needs_optional if name.startswith(tuple(OPTIONAL)) else ())
        for name in names
    ]


def test_every_file_is_expected() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", named(list(EXPECTED)))
def test_each_file_gives_what_it_should(name: str) -> None:
    assert outcome(name) == EXPECTED[name][1]


@pytest.mark.parametrize("name", named(OK))
def test_all_show_the_same_picture(name: str) -> None:
    reference = decode((FOLDER / "srgb_reference.jpg").read_bytes(), SIZE).canvas.astype(int)
    canvas = decode((FOLDER / name).read_bytes(), SIZE).canvas
    # They differ by compression only; without its profile, the one in Display P3 by 9.
    assert np.abs(canvas.mean((0, 1)) - reference.mean((0, 1))).max() < 2.5


def test_scores_of_display_p3_are_those_of_srgb(bundle_uri: str, tmp_path: Path) -> None:
    without_profile = tmp_path / "ignored.png"
    with Image.open(FOLDER / "icc_display_p3.jpg") as image:
        Image.fromarray(np.asarray(image)).save(without_profile)
    names = [FOLDER / "srgb_reference.jpg", FOLDER / "icc_display_p3.jpg", without_profile]
    scores = load(bundle_uri, precision="float32").predict([str(name) for name in names])
    probabilities = scores[["p_melanoma", "p_nevus"]].to_numpy(float)
    right, wrong = np.abs(probabilities[1:] - probabilities[0]).max(axis=1)
    assert right < wrong / 2


@needs_optional
def test_the_table_in_the_documentation_is_true() -> None:
    assert read_section(PAGE, "wild") == table().strip()
