"""Mask names: which files are masks by their name, and of which image."""

from pathlib import PurePosixPath

# What public archives add to an image's name for its masks: ISIC, PH2, HAM10000.
_SUFFIXES = ("_segmentation", "_superpixels", "_mask", "_lesion")
_LOSSLESS_ENDINGS = (".png", ".bmp")


def mask_suffix(uri: str) -> str | None:
    """What a mask's name ends in before its ending, in lower case; None for any other file.

    `a_Segmentation.png` -> `_segmentation`. `_lesion` counts in `.png` and `.bmp` files only:
    a photograph may be called that.
    """
    path = PurePosixPath(uri.lower())
    suffix = next((one for one in _SUFFIXES if path.stem.endswith(one)), None)
    return None if suffix == "_lesion" and path.suffix not in _LOSSLESS_ENDINGS else suffix


def masked_image_id(uri: str) -> str | None:
    """The id of the image that a file of a folder of masks belongs to; None if it is no mask.

    Masks are `.png` or `.bmp`: `<image_id>.png`, or with a suffix, `<image_id>_lesion.bmp`.
    Superpixels are no lesion masks.
    """
    path = PurePosixPath(uri)
    suffix = mask_suffix(uri) or ""
    if path.suffix.lower() not in _LOSSLESS_ENDINGS or suffix == "_superpixels":
        return None
    return path.stem[: len(path.stem) - len(suffix)]
