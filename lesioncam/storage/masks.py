"""Masks: lesion outlines as PNG files, one an image, in the image's own frame.

Training and evaluation compare maps and boxes with them. Needs neither torch nor Ray.
"""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.storage.listing import image_id
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import open_store, read_uri

_SUFFIX = "_segmentation"  # the ISIC archive's


def find_masks(uri: str) -> Mapping[str, str]:
    """Image id -> uri of its mask: `<image_id>.png` or `<image_id>_segmentation.png` below `uri`.

    Raises:
        InputError: there is none.
    """
    found = {
        image_id(entry.uri).removesuffix(_SUFFIX): entry.uri
        for entry in open_store(uri).entries()
        if entry.uri.lower().endswith(".png")
    }
    if not found:
        raise InputError(f"--masks: no masks in {uri}; expected <image_id>.png")
    return found


def read_mask(uri: str, side: int | None = None) -> np.ndarray:
    """Read a mask as (h, w) bool, or resized to (side, side) whatever its shape.

    Raises:
        InputError: there is no such file, access is refused, or it is no PNG image.
        RunFailedError: its store cannot be reached.
    """
    where = f"--masks: a file in {uri.rpartition('/')[0]}"  # its own name may be a patient's
    try:
        content = read_uri(uri)
    except StoreError as error:
        raise refusal(f"{where} cannot be read", error) from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            gray = image.convert("L")
            if side is not None:
                gray = gray.resize((side, side), Image.Resampling.BOX)
            return np.asarray(gray) > 127
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where} is not a PNG mask; remove it") from error
