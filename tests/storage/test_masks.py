"""Masks: found by their names, read as they are, and refused in another frame."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.mask_names import mask_suffix, masked_image_id
from lesioncam.storage.masks import find_masks, read_mask
from tests.conftest import SHARED, needs_shared


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    ("name", "suffix", "of_image"),
    [
        ("/x/a.png", None, "a"),
        ("/x/a.BMP", None, "a"),
        ("s3://b/x/a_segmentation.png", "_segmentation", "a"),
        ("/x/A_Segmentation.PNG", "_segmentation", "A"),
        ("/x/IMD002_lesion.bmp", "_lesion", "IMD002"),
        ("/x/IMD002_LESION.png", "_lesion", "IMD002"),
        ("/x/a_mask.bmp", "_mask", "a"),
        ("/x/a_superpixels.png", "_superpixels", None),
        ("/x/a_mask.jpg", "_mask", None),
        ("/x/back_lesion.jpg", None, None),
        ("/x_mask/a.png", None, "a"),
        ("/x/a_mask", "_mask", None),
        ("/x/a_mask.b.png", None, "a_mask.b"),
    ],
)
def test_a_name_says_whether_it_is_a_mask_and_of_which_image(
    name: str, suffix: str | None, of_image: str | None
) -> None:
    assert mask_suffix(name) == suffix
    assert masked_image_id(name) == of_image


def test_masks_are_found_by_image_id(tmp_path: Path) -> None:
    mask = np.ones((4, 4), bool)
    names = ("a.png", "deep/b_segmentation.png", "c_Segmentation.PNG", "d_lesion.bmp", "e_Mask.png")
    for name in names:
        save(tmp_path / name, mask)
    save(tmp_path / "a_superpixels.png", mask)
    (tmp_path / "f.jpg").write_bytes(b"")
    found = find_masks(str(tmp_path))
    assert found == {Path(name).name[0]: f"{tmp_path}/{name}" for name in names}


def test_beside_the_images_a_name_with_a_suffix_is_the_mask(tmp_path: Path) -> None:
    for name in ("a.bmp", "a_lesion.bmp", "b_lesion.bmp", "b.bmp"):
        save(tmp_path / name, np.ones((4, 4), bool))
    found = find_masks(str(tmp_path))
    assert found == {"a": f"{tmp_path}/a_lesion.bmp", "b": f"{tmp_path}/b_lesion.bmp"}


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    for name in ("x/a_mask.png", "y/a_segmentation.png", "b.png"):
        save(tmp_path / name, np.ones((4, 4), bool))
    with pytest.raises(InputError, match=f"--masks: 1 images have two masks in {tmp_path}; keep"):
        find_masks(str(tmp_path))


def test_a_location_without_masks_is_refused_with_the_rule(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--masks: no masks in .*; a mask's name is <image_id>"):
        find_masks(str(tmp_path))


@pytest.mark.parametrize("ending", ["png", "bmp"])
@pytest.mark.parametrize("kind", ["1-bit", "gray"])
def test_masks_are_read_as_they_are_and_squashed(tmp_path: Path, kind: str, ending: str) -> None:
    mask = np.zeros((20, 40), bool)
    mask[:10, 20:] = True
    uri = f"{tmp_path}/a.{ending}"
    save(Path(uri), mask if kind == "1-bit" else mask.astype(np.uint8) * 255)
    assert (read_mask(uri) == mask).all()
    small = read_mask(uri, side=4)
    assert small.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ((40, 20), (40, 20)),
        ((40, 20), (4000, 2000)),
        ((256, 192), (1023, 767)),
        ((11, 5), (1022, 767 - 300)),  # small ones are rounded
        ((5, 11), (767 - 300, 1022)),
        ((33, 100), (100, 300)),
    ],
)
def test_a_mask_in_another_size_of_its_image_s_frame_is_read(
    tmp_path: Path, mask: tuple[int, int], image: tuple[int, int]
) -> None:
    Image.new("1", mask).save(tmp_path / "a.png")
    assert read_mask(f"{tmp_path}/a.png", image).shape == mask[::-1]


@pytest.mark.parametrize(
    ("mask", "image"),
    [((300, 900), (256, 256)), ((40, 20), (20, 40)), ((512, 512), (1024, 768)), ((5, 9), (9, 9))],
)
def test_a_mask_of_another_aspect_ratio_is_refused(
    tmp_path: Path, mask: tuple[int, int], image: tuple[int, int]
) -> None:
    Image.new("1", mask).save(tmp_path / "JANE_DOE.png")
    sizes = f"{mask[0]} x {mask[1]} pixels, its image {image[0]} x {image[1]}: another aspect ratio"
    with pytest.raises(InputError, match=f"--masks: a file in {tmp_path} has {sizes}") as caught:
        read_mask(f"{tmp_path}/JANE_DOE.png", image)
    assert "JANE_DOE" not in str(caught.value)


def test_a_broken_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    message = f"--masks: a file in {tmp_path} is not a PNG or BMP mask"
    with pytest.raises(InputError, match=message):
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


@needs_shared
def test_masks_of_the_archives_are_found_and_read() -> None:
    folder = SHARED / "wild" / "masks"
    assert find_masks(str(folder)) == {
        "DRAWN_00000": f"{folder}/DRAWN_00000_Segmentation.png",
        "DRAWN_00001": f"{folder}/DRAWN_00001_lesion.bmp",
    }
    for uri in find_masks(str(folder)).values():
        assert read_mask(uri, (320, 240)).any()


def test_hidden_copies_of_masks_are_not_masks(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    save(tmp_path / "a_segmentation.png", mask)
    save(tmp_path / "._a_segmentation.png", mask)
    save(tmp_path / "@eaDir" / "a_segmentation.png", mask)
    assert find_masks(str(tmp_path)) == {"a": f"{tmp_path}/a_segmentation.png"}
