"""DICOM files of images, made by pydicom. Each has a patient, whose name no message may contain."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom import uid as uids
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

PATIENT = "Doe^Jane"
PREAMBLE = 128 + len("DICM")


def dataset(
    pixels: np.ndarray,
    photometric: str = "RGB",
    syntax: str = uids.ExplicitVRLittleEndian,
    **elements: Any,
) -> Dataset:
    """A dermoscopic photograph.

    Args:
        pixels: (H, W, 3) or (H, W), uint8 or uint16, as the interpretation stores them.
        photometric: their photometric interpretation.
        syntax: the transfer syntax that they are in, or are to be in.
        elements: other elements, or other values of these.
    """
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uids.UID(syntax)
    made.SOPClassUID = uids.DermoscopicPhotographyImageStorage
    made.SOPInstanceUID = "1.2.3"
    made.Modality = "DMS"
    made.PatientName = PATIENT
    made.PatientID = PATIENT
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    made.PhotometricInterpretation = photometric
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = 0
    is_big_endian = syntax == uids.ExplicitVRBigEndian
    order = pixels.dtype.newbyteorder(">" if is_big_endian else "<")
    content = pixels.astype(order).tobytes()
    made.PixelData = content + bytes(len(content) % 2)
    made["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def written(made: Dataset) -> bytes:
    """A data set as a file."""
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    sink = io.BytesIO()
    made.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def with_frames(made: Dataset, frames: list[bytes], fragments: int = 1) -> Dataset:
    """The same with these compressed frames for its pixels, each in so many fragments."""
    made.PixelData = encapsulate(frames, fragments_per_frame=fragments)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


def encoded(image: Image.Image, syntax: str = uids.ExplicitVRLittleEndian, **how: Any) -> bytes:
    """An image of mode RGB or L in a transfer syntax.

    Args:
        image: to encode.
        syntax: the transfer syntax.
        how: options of Pillow's encoder, for JPEG and JPEG 2000.
    """
    pixels = np.asarray(image)
    made = dataset(pixels, "RGB" if pixels.ndim == 3 else "MONOCHROME2", syntax)
    if syntax in (uids.RLELossless, uids.JPEGLSLossless, uids.JPEGLSNearLossless):
        made.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
        made.compress(
            syntax,
            generate_instance_uid=False,
            jls_error=2 if syntax == uids.JPEGLSNearLossless else None,
        )
    elif syntax in (uids.JPEGLossless, uids.JPEGLosslessSV1):
        with_frames(made, [lossless_jpeg(pixels)])
    elif syntax in (uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit):
        if pixels.ndim == 3:
            made.PhotometricInterpretation = "YBR_FULL_422"
        with_frames(made, [file_of(image, "JPEG", **how)])
    elif syntax in (uids.JPEG2000Lossless, uids.JPEG2000):
        is_lossy = syntax == uids.JPEG2000
        if pixels.ndim == 3:
            made.PhotometricInterpretation = "YBR_ICT" if is_lossy else "YBR_RCT"
        with_frames(made, [file_of(image, "JPEG2000", no_jp2=True, irreversible=is_lossy, **how)])
    return written(made)


def file_of(image: Image.Image, file_format: str, **how: Any) -> bytes:
    """An image as a file of another format."""
    sink = io.BytesIO()
    image.save(sink, file_format, **how)
    return sink.getvalue()


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """Pixels, (H, W) or (H, W, 3) uint8, in lossless JPEG: each is coded as its difference
    from the one to its left (ITU-T T.81, annex H).
    """  # fmt: skip
    planes = pixels.reshape(*pixels.shape[:2], -1).astype(int)
    height, width, count = planes.shape
    left = np.roll(planes, 1, axis=1)
    left[1:, 0], left[0, 0] = planes[:-1, 0], 128
    bits = "".join(_difference_bits(int(value)) for value in (planes - left).ravel())
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    frame = b"\x08" + size + bytes([count]) + b"".join(bytes([k, 0x11, 0]) for k in range(count))
    codes = bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])  # nine codes of four bits
    scan = bytes([count]) + b"".join(bytes([k, 0]) for k in range(count)) + b"\x01\0\0"
    segments = [(0xC3, frame), (0xC4, codes), (0xDA, scan)]
    header = b"".join(
        bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
        for marker, content in segments
    )
    return b"\xff\xd8" + header + coded + b"\xff\xd9"


def _difference_bits(difference: int) -> str:
    """How many bits a difference has, as a code of four bits, and these bits."""
    size = abs(difference).bit_length()
    value = difference if difference > 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{value:0{size}b}" if size else "")
