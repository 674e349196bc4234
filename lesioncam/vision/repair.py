"""Repair: files that Pillow refuses although every pixel is there, as bytes that it reads."""

import random
import zlib

from lesioncam.vision.formats import jpeg_segments

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_OVERHEAD = 12  # length, kind and checksum
_USED_CHUNKS = (b"tRNS", b"eXIf", b"iCCP")  # ancillary ones that matter for pixels
MAX_PNG_PROFILE = 16 * 2**20  # bytes of an ICC profile or a text
_IS_ANCILLARY = 0x20  # bit of a kind's first letter

_END_OF_IMAGE = b"\xff\xd9"
# Noise in place of pixels that are missing. Its first bit is not what the end marker stands for.
_NOISE = b"\xb5" + random.Random(0).randbytes(2**16).replace(b"\xff", b"\xfe")
_PADDING = 64  # zeros: more than coded pixels end in
_START_OF_SCAN = 0xDA
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COEFFICIENTS = 64  # of a block


def without_unused_chunks(png: bytes) -> bytes | None:
    """A PNG without comments and damaged metadata, as libpng would read it; None if it had none.

    Chunks that hold pixels stay as they are, damaged or not.
    """
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + _CHUNK_OVERHEAD <= len(png):
        end = at + _CHUNK_OVERHEAD + int.from_bytes(png[at : at + 4], "big")
        chunk = png[at:end]
        kind = chunk[4:8]
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        is_used = kind in _USED_CHUNKS and is_sound and _can_be_read(kind, chunk[8:-4])
        if not kind[0] & _IS_ANCILLARY or is_used:
            kept.append(chunk)
        at = end
    repaired = b"".join(kept)
    return None if len(repaired) == len(png) else repaired


def _can_be_read(kind: bytes, content: bytes) -> bool:
    """Whether Pillow reads this chunk: a profile must not be too large."""
    if kind != b"iCCP":
        return True
    compressed = content.partition(b"\0")[2][1:]
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(compressed, MAX_PNG_PROFILE)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def with_end_marker(jpeg: bytes) -> tuple[bytes, bytes] | None:
    """A JPEG without its end marker, with two different ends; None if a scan of it is missing.

    If both decode to the same pixels, every pixel is there: what follows the last is not decoded.
    """
    jpeg = jpeg.removesuffix(b"\xff")
    if not _has_all_scans(jpeg):
        return None
    return jpeg + _END_OF_IMAGE, jpeg + _NOISE + _END_OF_IMAGE


def _has_all_scans(jpeg: bytes) -> bool:
    """Whether the scans give every coefficient of every component to its last bit."""
    missing: dict[int, set[int]] = {}
    for marker, content in jpeg_segments(jpeg):
        if marker in _SOF_MARKERS:
            components = content[6::3]
            missing = {component: set(range(_COEFFICIENTS)) for component in components}
        elif marker == _START_OF_SCAN and len(content) >= 4:
            *selectors, first, last, bits = content[1:]
            if bits & 0x0F == 0:
                for component in selectors[::2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def without_padding(jpeg: bytes) -> bytes:
    """A JPEG without the zeros that a broken download leaves in place of its rest."""
    return jpeg.rstrip(b"\0") if jpeg.endswith(bytes(_PADDING)) else jpeg
