"""Color: pixels that an ICC profile describes, in sRGB.

Knows nothing about files. Profiles that are sRGB by another name are recognized by what they do.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MAX_DIFFERENCE = 2  # of 255, from sRGB, of a profile that counts as sRGB
_STEPS = 9  # sample colors per channel
_CACHED_PROFILES = 32


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB or CMYK from an ICC profile to 8-bit sRGB.

    A profile that is broken, or describes other channels than the image has, is ignored. Costs
    next to nothing where the profile is sRGB.
    """
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None for conversions in place
    return converted


@lru_cache(_CACHED_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of images of this mode to sRGB; None if there is none or it does nothing."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
        )
        samples = _samples(mode)
        converted = ImageCms.applyTransform(samples, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):  # LittleCMS refuses the profile
        return None
    difference = np.asarray(converted, int) - np.asarray(samples.convert("RGB"), int)
    return transform if np.abs(difference).max() > _MAX_DIFFERENCE else None


def _samples(mode: str) -> Image.Image:
    """An image of colors from all over the range of its channels."""
    levels = np.linspace(0, 255, _STEPS).astype(np.uint8)
    grid = np.meshgrid(*[levels] * len(Image.new(mode, (1, 1)).getbands()))
    colors = np.stack(grid, axis=-1).reshape(-1, len(grid))
    return Image.frombytes(mode, (len(colors), 1), colors.tobytes())
