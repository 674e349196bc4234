from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.masks import find_masks, read_mask


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)


def test_masks_are_found_by_id_with_or_without_the_archive_ending(tmp_path: Path) -> None:
    mask = np.ones((4, 4), bool)
    save(tmp_path / "a.png", mask)
    save(tmp_path / "deep" / "b_segmentation.png", mask)
    (tmp_path / "c.jpg").write_bytes(b"")
    found = find_masks(str(tmp_path))
    assert {name: Path(uri).name for name, uri in found.items()} == {
        "a": "a.png",
        "b": "b_segmentation.png",
    }


def test_a_location_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--masks: no masks in"):
        find_masks(str(tmp_path))


@pytest.mark.parametrize("kind", ["1-bit", "gray"])
def test_masks_are_read_as_they_are_and_squashed(tmp_path: Path, kind: str) -> None:
    mask = np.zeros((20, 40), bool)
    mask[:10, 20:] = True
    save(tmp_path / "a.png", mask if kind == "1-bit" else mask.astype(np.uint8) * 255)
    assert (read_mask(str(tmp_path / "a.png")) == mask).all()
    small = read_mask(str(tmp_path / "a.png"), 4)
    assert small.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


def test_a_broken_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=f"--masks: a file in {tmp_path} is not a PNG mask"):
        read_mask(str(tmp_path / "a.png"))


def test_a_mask_that_its_store_does_not_give_is_not_called_broken(unreachable: str) -> None:
    with pytest.raises(
        RunFailedError, match=f"--masks: a file in {unreachable} cannot be read: "
    ) as caught:
        read_mask(f"{unreachable}/JANE_DOE.png")
    assert "JANE_DOE" not in str(caught.value)


def test_a_mask_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--masks: a file in {tmp_path} cannot be read: no such"):
        read_mask(str(tmp_path / "a.png"))
