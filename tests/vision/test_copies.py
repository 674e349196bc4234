"""Copies: the same picture under another encoding, and other pictures."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesioncam.vision import copies
from lesioncam.vision.copies import (
    SIZE,
    groups_by_name,
    groups_of_copies,
    join_groups,
    pairs_of_copies,
    thumbnail,
)
from lesioncam.vision.decode import decode
from tests.messy import lesion


def picture(seed: int) -> Image.Image:
    """Smooth blobs of color, 640 x 480, with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(60, 220, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
    grain = random.integers(-12, 13, (480, 640, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def thumbnail_of(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return thumbnail(decode(buffer.getvalue(), 192).canvas)


def uniform(*values: float) -> np.ndarray:
    """(n, SIZE, SIZE, 3): thumbnails of one gray level each."""
    return np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in values])


def test_thumbnail_of_an_uneven_size_by_hand() -> None:
    columns = np.arange(24, dtype=np.uint8) * 10  # cells of 2, 1, 1, 2 columns and so on
    image = np.broadcast_to(columns[None, :, None], (24, 24, 3))
    first = [5, 20, 30, 45, 65, 80, 90, 105]
    expected = [*first, *(value + 120 for value in first)]
    assert thumbnail(image)[0, :, 0].tolist() == expected
    assert thumbnail(image.transpose(1, 0, 2))[:, 0, 2].tolist() == expected


@pytest.mark.parametrize("size", [16, 17, 31, 100, 448])
def test_thumbnail_of_a_uniform_image_is_uniform(size: int) -> None:
    image = np.full((size, size, 3), (255, 101, 0), np.uint8)
    small = thumbnail(image)
    assert small.shape == (SIZE, SIZE, 3)
    assert small.dtype == np.uint8
    assert (small == (255, 101, 0)).all()


def test_another_encoding_is_a_copy() -> None:
    image = picture(0)
    encodings = [
        thumbnail_of(image, "JPEG", quality=50),
        thumbnail_of(image.resize((320, 240)), "JPEG"),
        thumbnail_of(image.resize((1000, 700)), "WEBP"),
    ]
    assert list(pairs_of_copies(np.stack([thumbnail_of(image)]), np.stack(encodings))) == [
        (0, 0), (0, 1), (0, 2),
    ]  # fmt: skip


def test_other_pictures_are_no_copies() -> None:
    others = [thumbnail_of(picture(seed)) for seed in range(5)]
    rotated = [thumbnail_of(picture(0).rotate(angle)) for angle in (90, 180)]
    moved = lesion(320, 240).transform((320, 240), Image.Transform.AFFINE, (1, 0, 40, 0, 1, 0))
    every = np.stack([*others, *rotated, thumbnail_of(lesion(320, 240)), thumbnail_of(moved)])
    assert list(pairs_of_copies(every, every)) == [(i, i) for i in range(len(every))]
    assert groups_of_copies(every).tolist() == list(range(len(every)))


def test_chains_of_copies_are_one_group() -> None:
    # 100, 104 and 108 are near the next one only; 0 and 2 are near each other.
    thumbnails = uniform(108, 200, 100, 0, 104, 2)
    assert (2, 0) not in set(pairs_of_copies(thumbnails, thumbnails))
    assert groups_of_copies(thumbnails).tolist() == [0, 1, 0, 3, 0, 3]


def test_two_groups_that_meet_late_are_one() -> None:
    # 0, 5 and 20, 15 are groups of their own until 10 stands between them.
    assert groups_of_copies(uniform(0, 20, 5, 15, 10)).tolist() == [0] * 5


@pytest.mark.parametrize("pairs", [1, 14, 21, 1000])
def test_blocks_of_any_size_find_the_same(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = uniform(10, 90, 12, 200, 93, 11, 201)
    monkeypatch.setattr(copies, "_PAIRS", pairs)
    assert groups_of_copies(thumbnails).tolist() == [0, 1, 0, 3, 1, 0, 3]
    assert list(pairs_of_copies(thumbnails[3:], thumbnails[:3])) == [(1, 1), (2, 0), (2, 2)]


def test_many_equal_images_are_one_group() -> None:
    groups = groups_of_copies(np.repeat(uniform(100, 50), 1500, axis=0))  # 4.5 million pairs
    assert groups.tolist() == [0] * 1500 + [1500] * 1500


def test_no_images_have_no_copies() -> None:
    assert groups_of_copies(uniform(1)[:0]).tolist() == []
    none = uniform(1)[:0]
    assert list(pairs_of_copies(none, uniform(1, 2))) == []
    assert list(pairs_of_copies(uniform(1, 2), none)) == []


def test_items_without_a_name_are_groups_of_their_own() -> None:
    assert groups_by_name(["", "b", "a", "", "b", "a"]).tolist() == [0, 1, 2, 3, 1, 2]
    assert groups_by_name([]).tolist() == []


def test_joined_groups_hold_what_either_connects() -> None:
    first, second = np.array([0, 0, 2, 3, 4, 4]), np.array([0, 1, 1, 3, 4, 3])
    assert join_groups(first, second).tolist() == [0, 0, 0, 3, 3, 3]
    assert join_groups(first, np.arange(6)).tolist() == first.tolist()
