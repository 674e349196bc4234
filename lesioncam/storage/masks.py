"""Masks: lesion outlines as PNG or BMP files, one an image, in the image's own frame.

Training and evaluation compare maps and boxes with them. Needs neither torch nor Ray.
"""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.storage.hidden import is_hidden
from lesioncam.storage.mask_names import mask_suffix, masked_image_id
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import open_store, read_uri

MASK_NAMES = "<image_id>, or with _segmentation, _mask or _lesion behind it, and .png or .bmp"
_MAX_DIFFERENCE = 0.02  # of a mask's aspect ratio from its image's
_ROUNDING = 1  # pixel that a side of a smaller mask may differ by


def find_masks(uri: str) -> Mapping[str, str]:
    """Image id -> uri of its mask, below `uri`; one with a suffix goes before one without.

    Raises:
        InputError: there is none, or an image has two.
    """
    found: dict[str, str] = {}
    two: set[str] = set()
    for entry in open_store(uri).entries(lambda folder: not is_hidden(folder)):
        name = masked_image_id(entry.uri)
        if name is None or is_hidden(name):
            continue
        has_suffix = mask_suffix(entry.uri) is not None
        had_suffix = name in found and mask_suffix(found[name]) is not None
        if name not in found or (has_suffix and not had_suffix):
            found[name] = entry.uri
            two.discard(name)
        elif has_suffix == had_suffix:
            two.add(name)
    if not found:
        raise InputError(f"--masks: no masks in {uri}; a mask's name is {MASK_NAMES}")
    if two:
        raise InputError(f"--masks: {len(two)} images have two masks in {uri}; keep one of each")
    return found


def read_mask(
    uri: str, image_size: tuple[int, int] | None = None, side: int | None = None
) -> np.ndarray:
    """Read a mask as (h, w) bool.

    Args:
        uri: of the mask.
        image_size: width and height of its image, to check that both show the same frame; None
            not to.
        side: resize it to (side, side), whatever its shape; None for as it is.

    Raises:
        InputError: there is no such file, access is refused, it is no PNG or BMP image, or its
            aspect ratio is not its image's.
        RunFailedError: its store cannot be reached.
    """
    where = f"--masks: a file in {uri.rpartition('/')[0]}"  # its own name may be a patient's
    try:
        content = read_uri(uri)
    except StoreError as error:
        raise refusal(f"{where} cannot be read", error) from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "BMP"]) as image:
            gray = image.convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where} is not a PNG or BMP mask; remove it") from error
    if image_size is not None and not _same_aspect_ratio(gray.size, image_size):
        raise InputError(
            f"{where} has {gray.width} x {gray.height} pixels, its image "
            f"{image_size[0]} x {image_size[1]}: another aspect ratio; give masks of the whole "
            f"image, or remove it"
        )
    if side is not None:
        gray = gray.resize((side, side), Image.Resampling.BOX)
    return np.asarray(gray) > 127


def _same_aspect_ratio(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a mask's sides, of whole pixels, can be its image's scaled by one factor."""
    width, height = mask
    expected = width * image[1] / image[0]
    allowed = max(_MAX_DIFFERENCE * expected, _ROUNDING * max(1, image[1] / image[0]))
    return abs(height - expected) <= allowed
