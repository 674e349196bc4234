"""Color profiles: what they describe becomes sRGB; sRGB itself costs nothing."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from lesioncam.vision.color import to_srgb
from lesioncam.vision.decode import decode, decode_image
from tests import icc
from tests.messy import lesion

SIZE = 64
LAB_50 = 119  # the gray of lightness 50 in sRGB


def encoded(image: Image.Image, file_format: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, file_format, **how)
    return sink.getvalue()


def canvas(image: Image.Image, file_format: str = "PNG", **how: Any) -> np.ndarray:
    return decode(encoded(image, file_format, **how), SIZE).canvas.astype(int)


def in_display_p3(image: Image.Image) -> Image.Image:
    """The same colors, written in Display P3."""
    srgb = ImageCms.createProfile("sRGB")
    p3 = ImageCms.ImageCmsProfile(io.BytesIO(icc.display_p3()))
    converted = ImageCms.profileToProfile(image, srgb, p3)
    assert converted is not None
    del converted.info["icc_profile"]  # Pillow would save it without being asked
    return converted


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_in_another_color_space_gives_the_canvas_of_the_same_in_srgb(
    file_format: str,
) -> None:
    image = lesion(96, 64)
    how = {"lossless": True} if file_format == "WEBP" else {"quality": 100}
    expected = canvas(image, file_format, **how)
    p3 = in_display_p3(image)
    assert np.abs(canvas(p3, file_format, **how) - expected).max() > 5
    converted = canvas(p3, file_format, **how, icc_profile=icc.display_p3())
    assert np.abs(converted - expected).max() <= 3


def test_transparency_is_kept() -> None:
    image = in_display_p3(lesion(96, 64))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = lesion(96, 64)
    expected.putalpha(image.getchannel("A"))
    converted = canvas(image, icc_profile=icc.display_p3())
    assert np.abs(converted - canvas(expected)).max() <= 3


def test_a_palette_is_converted() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette(in_display_p3(Image.new("RGB", (1, 1), (200, 60, 50))).tobytes())
    converted = canvas(image, icc_profile=icc.display_p3())
    assert np.abs(converted - (200, 60, 50)).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_values_of_another_gamma_are_converted(mode: str) -> None:
    value: Any = {"L": 55, "LA": (55, 255), "I;16": 55 * 257}[mode]
    image = Image.new(mode, (8, 8), value)
    # 55 / 255 is a linear intensity here: 0.2157, which sRGB writes as 0.5018.
    converted = canvas(image, "PNG", icc_profile=icc.gray(1.0))
    assert np.abs(converted - 128).max() <= 1


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(file_format: str) -> None:
    image = Image.new("CMYK", (8, 8), (200, 20, 100, 128))
    converted = canvas(image, file_format, icc_profile=icc.printer())
    assert np.abs(converted - LAB_50).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [b"", b"x", bytes(200), icc.display_p3()[:100], icc.display_p3()[:300], icc.gray(1.0),
     icc.printer()],
    ids=["empty", "short", "zeros", "cut in header", "cut in tags", "gray", "CMYK"],
)  # fmt: skip
def test_a_profile_that_is_broken_or_not_for_these_channels_is_ignored(profile: bytes) -> None:
    image = lesion(96, 64)
    for file_format in ("PNG", "JPEG"):
        expected = canvas(image, file_format)
        np.testing.assert_array_equal(canvas(image, file_format, icc_profile=profile), expected)


@pytest.mark.parametrize(
    "profile",
    [icc.srgb(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["drawn", "LittleCMS"],
)
def test_srgb_is_recognized_and_not_converted(
    profile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = lesion(96, 64)
    expected = canvas(image, "JPEG")
    np.testing.assert_array_equal(canvas(image, "JPEG", icc_profile=profile), expected)
    # The profile was looked at once; from now on LittleCMS is not asked.
    monkeypatch.setattr("lesioncam.vision.color.ImageCms", None)
    np.testing.assert_array_equal(canvas(image, "JPEG", icc_profile=profile), expected)


def test_an_image_of_pillow_is_converted_too() -> None:
    with Image.open(
        io.BytesIO(encoded(in_display_p3(lesion(96, 64)), "PNG", icc_profile=icc.display_p3()))
    ) as image:
        converted = decode_image(image, SIZE).canvas.astype(int)
    assert np.abs(converted - canvas(lesion(96, 64))).max() <= 3


def test_without_a_profile_pillow_converts() -> None:
    image = Image.new("CMYK", (4, 4), (200, 20, 100, 40))
    assert to_srgb(image, None).getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))
