"""DICOM: photographs in every coding are read, all else is named, and no patient is."""

import io
import random
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import DecodeError, decode
from lesioncam.vision.decoder import Decoder
from tests import icc
from tests.faults.fuzz import mutated
from tests.messy import lesion

pytest.importorskip("pydicom", reason="needs lesioncam[dicom]")

from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.encaps import generate_frames

from tests.dicom import (
    PREAMBLE,
    dataset,
    encoded,
    file_of,
    lossless_jpeg,
    with_frames,
    written,
)

SIZE = 64
IMAGE = lesion(90, 60)
PIXELS = np.asarray(IMAGE)
GRAY_IMAGE = IMAGE.convert("L")
GRAY = np.asarray(GRAY_IMAGE)

needs_pylibjpeg = pytest.mark.skipif(find_spec("libjpeg") is None, reason="needs pylibjpeg-libjpeg")
LOSSLESS = [
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRLittleEndian,
    uids.ExplicitVRBigEndian,
    uids.DeflatedExplicitVRLittleEndian,
    uids.RLELossless,
    uids.JPEGLSLossless,
    uids.JPEG2000Lossless,
    pytest.param(uids.JPEGLossless, marks=needs_pylibjpeg),
    pytest.param(uids.JPEGLosslessSV1, marks=needs_pylibjpeg),
]
LOSSY = [
    uids.JPEGBaseline8Bit,
    uids.JPEGExtended12Bit,
    uids.JPEGLSNearLossless,
    uids.JPEG2000,
]


def canvas(data: bytes) -> np.ndarray:
    return decode(data, SIZE).canvas.astype(int)


def expected(image: Image.Image, **how: Any) -> np.ndarray:
    return canvas(file_of(image, "PNG", **how))


def failure(data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIZE)
    assert_no_patient(caught.value)
    return caught.value


def assert_no_patient(error: DecodeError) -> None:
    assert "doe" not in error.message.lower()
    assert "jane" not in error.message.lower()


def jpeg_without_markers(image: Image.Image) -> bytes:
    """A JPEG that holds RGB, without JFIF's and Adobe's segments.

    Its components are named R, G and B, by which libjpeg knows them.
    """
    jpeg = file_of(image, "JPEG", keep_rgb=True, quality=95)
    header, scan = jpeg[: jpeg.index(b"\xff\xda")], jpeg[jpeg.index(b"\xff\xda") :]
    at = 2
    kept = header[:2]
    while at < len(header):
        end = at + 2 + int.from_bytes(header[at + 2 : at + 4], "big")
        if header[at + 1] not in (0xE0, 0xEE):
            kept += header[at:end]
        at = end
    return kept + scan


def jpeg_that_does_not_say(image: Image.Image) -> bytes:
    """The same with components named 1, 2 and 3: nothing in it says that it holds RGB."""
    jpeg = jpeg_without_markers(image)
    for number, name in enumerate(b"RGB", 1):
        frame, scan = bytes([name, 0x11, 0]), bytes([name, 0])
        jpeg = jpeg.replace(frame, bytes([number, 0x11, 0]), 1)
        jpeg = jpeg.replace(scan, bytes([number, 0]), 1)
    return jpeg


# Transfer syntaxes


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("image", [IMAGE, GRAY_IMAGE, lesion(31, 17)], ids=["rgb", "gray", "odd"])
def test_pixels_are_those_of_the_image(syntax: uids.UID, image: Image.Image) -> None:
    data = encoded(image, syntax)
    np.testing.assert_array_equal(canvas(data), expected(image))
    found = decode(data, SIZE)
    assert (found.width, found.height) == image.size


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("image", [IMAGE, GRAY_IMAGE], ids=["rgb", "gray"])
def test_lossy_pixels_are_near_those_of_the_image(syntax: uids.UID, image: Image.Image) -> None:
    difference = np.abs(canvas(encoded(image, syntax)) - expected(image))
    assert difference.mean() < 3


@pytest.mark.parametrize("size", [(90, 60), (1500, 1000)])
def test_a_jpeg_gives_the_canvas_of_its_own_file(size: tuple[int, int]) -> None:
    image = lesion(*size)
    data = encoded(image, uids.JPEGBaseline8Bit)
    np.testing.assert_array_equal(canvas(data), canvas(file_of(image, "JPEG")))
    assert (decode(data, SIZE).width, decode(data, SIZE).height) == size


def test_a_frame_in_several_fragments_is_read() -> None:
    made = dataset(PIXELS, "YBR_FULL_422", uids.JPEGBaseline8Bit)
    jpeg = file_of(IMAGE, "JPEG")
    with_frames(made, [jpeg], fragments=3)
    np.testing.assert_array_equal(canvas(written(made)), canvas(jpeg))


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.JPEGBaseline8Bit])
def test_the_first_of_several_frames_is_read(syntax: uids.UID) -> None:
    other = lesion(90, 60).transpose(Image.Transpose.ROTATE_180)
    frames = [IMAGE, other, other]
    made = dataset(PIXELS, "RGB", syntax, NumberOfFrames=3)
    made.SOPClassUID = uids.MultiFrameTrueColorSecondaryCaptureImageStorage
    if syntax == uids.JPEGBaseline8Bit:
        made.PhotometricInterpretation = "YBR_FULL_422"
        with_frames(made, [file_of(frame, "JPEG", quality=95) for frame in frames])
    else:
        made.PixelData = b"".join(frame.tobytes() for frame in frames)
    assert np.abs(canvas(written(made)) - expected(IMAGE)).mean() < 3


# Colors


def test_color_by_plane_is_color_by_pixel() -> None:
    made = dataset(PIXELS, PlanarConfiguration=1)
    made.PixelData = PIXELS.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(canvas(written(made)), expected(IMAGE))


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.RLELossless])
def test_ybr_full_becomes_rgb(syntax: uids.UID) -> None:
    made = dataset(np.asarray(IMAGE.convert("YCbCr")), "YBR_FULL")
    if syntax == uids.RLELossless:
        made.compress(syntax, generate_instance_uid=False)
    assert np.abs(canvas(written(made)) - expected(IMAGE)).max() <= 3


def test_ybr_full_422_becomes_rgb() -> None:
    ycc = np.asarray(IMAGE.convert("YCbCr"))
    made = dataset(ycc, "YBR_FULL_422")
    packed = np.stack([ycc[:, ::2, 0], ycc[:, 1::2, 0], ycc[:, ::2, 1], ycc[:, ::2, 2]], axis=2)
    made.PixelData = packed.tobytes()
    assert np.abs(canvas(written(made)) - expected(IMAGE)).mean() < 3


@pytest.mark.parametrize(
    ("frame", "photometric"),
    [
        (file_of(IMAGE, "JPEG", quality=95), "YBR_FULL_422"),
        (file_of(IMAGE, "MPO", quality=95, save_all=True, append_images=[IMAGE]), "YBR_FULL_422"),
        (file_of(IMAGE, "JPEG", quality=95), "RGB"),  # untrue; the JPEG says YCbCr
        (file_of(IMAGE, "JPEG", quality=95, keep_rgb=True), "RGB"),
        (jpeg_without_markers(IMAGE), "RGB"),
        (jpeg_that_does_not_say(IMAGE), "RGB"),
        (file_of(IMAGE, "JPEG2000", no_jp2=True, mct=0), "RGB"),
        (file_of(IMAGE, "JPEG2000", no_jp2=True, mct=1), "YBR_RCT"),
    ],
    ids=[
        "ycbcr",
        "ycbcr in mpo",
        "ycbcr as rgb",
        "adobe rgb",
        "named rgb",
        "unmarked rgb",
        "j2k rgb",
        "j2k rct",
    ],
)
def test_compressed_color_is_right(frame: bytes, photometric: str) -> None:
    is_jpeg = frame.startswith(b"\xff\xd8")
    made = dataset(PIXELS, photometric, uids.JPEGBaseline8Bit if is_jpeg else uids.JPEG2000)
    data = written(with_frames(made, [frame]))
    assert np.abs(canvas(data) - expected(IMAGE)).mean() < 3


def test_jpeg_2000_that_holds_ybr_full_becomes_rgb() -> None:
    ycc = Image.merge("RGB", IMAGE.convert("YCbCr").split())
    frame = file_of(ycc, "JPEG2000", no_jp2=True, mct=0)
    data = written(with_frames(dataset(PIXELS, "YBR_FULL", uids.JPEG2000Lossless), [frame]))
    assert np.abs(canvas(data) - expected(IMAGE)).max() <= 3


@pytest.mark.parametrize(
    ("photometric", "pixels"), [("MONOCHROME1", 255 - GRAY), ("MONOCHROME2", GRAY)]
)
def test_gray_is_white_where_the_interpretation_says(photometric: str, pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(
        canvas(written(dataset(pixels, photometric))), expected(GRAY_IMAGE)
    )


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.ExplicitVRBigEndian])
def test_samples_of_more_than_eight_bits_are_scaled(bits: int, syntax: uids.UID) -> None:
    for pixels, photometric, image in (
        (GRAY, "MONOCHROME2", GRAY_IMAGE),
        (PIXELS, "RGB", IMAGE),
    ):
        stored = pixels.astype(np.uint16) << (bits - 8)
        made = dataset(stored, photometric, syntax, BitsStored=bits, HighBit=bits - 1)
        np.testing.assert_array_equal(canvas(written(made)), expected(image))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_its_colors(bits: int) -> None:
    image = IMAGE.quantize(16)
    colors = np.array(image.getpalette(), np.uint16).reshape(-1, 3)
    made = dataset(np.asarray(image), "PALETTE COLOR")
    made.SOPClassUID = uids.SecondaryCaptureImageStorage
    for name, values in zip(("Red", "Green", "Blue"), colors.T, strict=True):
        entries = values * 257 if bits == 16 else values
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [len(colors), 0, bits])
        content = entries.astype("<u2" if bits == 16 else np.uint8).tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", content)
    np.testing.assert_array_equal(canvas(written(made)), expected(image.convert("RGB")))


def test_a_palette_in_segments_gives_its_colors() -> None:
    made = dataset(GRAY, "PALETTE COLOR")
    made.SOPClassUID = uids.SecondaryCaptureImageStorage
    # In each color 256 entries: the first, and one segment from there to the last.
    for name, first, last in (("Red", 0, 255), ("Green", 255, 0), ("Blue", 0, 0)):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        content = bytes([0, 1, first, 1, 255, last])
        setattr(made, f"Segmented{name}PaletteColorLookupTableData", content)
    colors = Image.merge("RGB", [Image.fromarray(one) for one in (GRAY, 255 - GRAY, 0 * GRAY)])
    assert np.abs(canvas(written(made)) - expected(colors)).max() <= 1


def test_colors_of_the_icc_profile_become_srgb() -> None:
    profile = icc.display_p3()
    data = written(dataset(PIXELS, ICCProfile=profile))
    np.testing.assert_array_equal(canvas(data), expected(IMAGE, icc_profile=profile))
    assert np.abs(canvas(data) - expected(IMAGE)).max() > 2


def test_pixels_stay_as_they_are_stored() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    frame = file_of(IMAGE, "JPEG", exif=exif)
    made = dataset(PIXELS, "YBR_FULL_422", uids.JPEGBaseline8Bit, PatientOrientation=["A", "F"])
    data = written(with_frames(made, [frame]))
    np.testing.assert_array_equal(canvas(data), canvas(file_of(IMAGE, "JPEG")))


# Files


def without_meta(made: Dataset, *, implicit: bool) -> bytes:
    """A file that begins with its data set."""
    sink = io.BytesIO()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.save_as(sink, implicit_vr=implicit, little_endian=True)
    data = sink.getvalue()
    return data[data.index(b"\x08\0\x05\0") :]


@pytest.mark.parametrize(
    "data",
    [
        encoded(IMAGE)[PREAMBLE:],
        encoded(IMAGE, uids.RLELossless)[PREAMBLE:],
        without_meta(dataset(PIXELS), implicit=False),
        without_meta(dataset(PIXELS, syntax=uids.ImplicitVRLittleEndian), implicit=True),
    ],
    ids=["no preamble", "compressed", "no meta", "implicit no meta"],
)
def test_a_file_without_its_preamble_is_read(data: bytes) -> None:
    np.testing.assert_array_equal(canvas(data), expected(IMAGE))


CUT = [*LOSSLESS, *LOSSY]


@pytest.mark.parametrize("syntax", CUT, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_truncated(syntax: uids.UID, fraction: float) -> None:
    data = encoded(IMAGE, syntax)
    start = PREAMBLE + 1
    error = failure(data[: start + int((len(data) - start) * fraction)])
    assert error.kind == ErrorKind.TRUNCATED
    if fraction == 0.9 and syntax != uids.DeflatedExplicitVRLittleEndian:
        assert error.size == IMAGE.size


@pytest.mark.parametrize("syntax", CUT, ids=lambda uid: uid.keyword)
def test_a_frame_that_is_cut_off_is_truncated(syntax: uids.UID) -> None:
    made = dcmread(io.BytesIO(encoded(IMAGE, syntax)))
    if made["PixelData"].is_undefined_length:
        frame = next(generate_frames(made.PixelData, number_of_frames=1))
        with_frames(made, [frame[: len(frame) // 2]])
    else:
        made.PixelData = made.PixelData[: len(made.PixelData) // 2]
    error = failure(written(made))
    assert (error.kind, error.size) == (ErrorKind.TRUNCATED, IMAGE.size)


@pytest.mark.parametrize(
    "change",
    [
        {"Rows": 50},
        {"Columns": 91},
        {"SamplesPerPixel": 1},
        {"PhotometricInterpretation": "MONOCHROME2"},
    ],
)
def test_a_frame_that_is_not_what_the_header_says_is_truncated(change: dict[str, Any]) -> None:
    made = dataset(PIXELS, "YBR_FULL_422", uids.JPEGBaseline8Bit, **change)
    error = failure(written(with_frames(made, [file_of(IMAGE, "JPEG")])))
    assert error.kind == ErrorKind.TRUNCATED


def test_a_header_without_its_colors_is_truncated() -> None:
    made = dataset(PIXELS)
    del made.PhotometricInterpretation
    error = failure(written(made))
    assert (error.kind, error.message) == (
        ErrorKind.TRUNCATED, "the DICOM header is damaged or incomplete"
    )  # fmt: skip


def test_compressed_pixels_of_an_uncompressed_syntax_are_truncated() -> None:
    compressed = with_frames(dataset(PIXELS), [PIXELS.tobytes()])
    compressed.file_meta.TransferSyntaxUID = uids.RLELossless
    data = written(compressed)
    untrue = data.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0")
    assert untrue != data
    assert failure(untrue).kind == ErrorKind.TRUNCATED


def test_an_image_of_too_many_pixels_is_refused_by_its_header() -> None:
    error = failure(written(dataset(PIXELS, Rows=30_000, Columns=30_000)))
    assert (error.kind, error.size) == (ErrorKind.TOO_LARGE, (30_000, 30_000))


# What is not read


def changed(**elements: Any) -> Callable[[], bytes]:
    return lambda: written(dataset(PIXELS, **elements))


def without_pixels(sop_class: str) -> bytes:
    made = dataset(PIXELS, SOPClassUID=sop_class)
    del made.PixelData, made.Rows, made.Columns
    return written(made)


def in_syntax(syntax: str, frame: bytes = b"\0\1", **elements: Any) -> bytes:
    return written(with_frames(dataset(PIXELS, syntax=syntax, **elements), [frame]))


TWELVE_BIT = file_of(IMAGE, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")
CAPTURE = uids.SecondaryCaptureImageStorage
NOT_READ: dict[str, Callable[[], bytes]] = {
    "CT Image Storage": changed(SOPClassUID=uids.CTImageStorage, Modality="CT"),
    "MR Image Storage": changed(SOPClassUID=uids.MRImageStorage),
    "VL Endoscopic Image Storage": changed(SOPClassUID=uids.VLEndoscopicImageStorage),
    "VL Whole Slide Microscopy Image Storage": changed(
        SOPClassUID=uids.VLWholeSlideMicroscopyImageStorage
    ),
    "Basic Text SR Storage": lambda: without_pixels(uids.BasicTextSRStorage),
    "Encapsulated PDF Storage": lambda: without_pixels(uids.EncapsulatedPDFStorage),
    "Media Storage Directory Storage": lambda: without_pixels(uids.MediaStorageDirectoryStorage),
    "object of an unknown class": changed(SOPClassUID="1.2.3.4"),
    "Secondary Capture Image Storage of another modality": changed(
        SOPClassUID=CAPTURE, Modality="CT"
    ),
    "in MPEG2 Main Profile / Main Level": lambda: in_syntax(uids.MPEG2MPML),
    "in an unknown transfer syntax": lambda: in_syntax(uids.MPEG2MPML).replace(
        uids.MPEG2MPML.encode(), b"1.2.840.10008.1.2.4.999"
    ),
    "in HSV color": changed(photometric="HSV"),
    "in unknown color": changed(photometric="DOE JANE"),
    "with 32 bits a sample": changed(BitsAllocated=32, BitsStored=32, HighBit=31),
    "with signed samples": changed(PixelRepresentation=1),
    "with samples that are not in the low bits": changed(BitsStored=6),
    "with 12-bit JPEG": lambda: in_syntax(
        uids.JPEGExtended12Bit, TWELVE_BIT, photometric="YBR_FULL_422"
    ),
    "with lossless JPEG": lambda: in_syntax(uids.JPEGBaseline8Bit, lossless_jpeg(PIXELS)),
    "with a palette in JPEG 2000 Image Compression (Lossless Only)": lambda: in_syntax(
        uids.JPEG2000Lossless, photometric="PALETTE COLOR"
    ),
}


@pytest.mark.parametrize("reason", NOT_READ)
def test_what_is_not_read_is_named(reason: str) -> None:
    error = failure(NOT_READ[reason]())
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.message.startswith(f"DICOM {reason} is not supported; supported are ")
    assert error.message.endswith(" and DICOM photographs")


@pytest.mark.parametrize("modality", ["XC", "DMS", "OT", "", None])
def test_a_secondary_capture_of_a_photograph_is_read(modality: str | None) -> None:
    made = dataset(PIXELS, SOPClassUID=CAPTURE, Modality=modality)
    np.testing.assert_array_equal(canvas(written(made)), expected(IMAGE))


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (uids.JPEGLSLossless, "DICOM in JPEG-LS is not supported; pip install 'lesioncam[dicom]'"),
        (
            uids.JPEGLosslessSV1,
            "DICOM in lossless JPEG is not supported; pip install pylibjpeg pylibjpeg-libjpeg",
        ),
    ],
)
def test_the_package_of_a_missing_codec_is_named(
    syntax: uids.UID, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pydicom.pixels.common.CoderBase.available_plugins", ())
    error = failure(in_syntax(syntax, lossless_jpeg(PIXELS)))
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.message.startswith(f"{message} reads it; ")


# Damage


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", CUT, ids=lambda uid: uid.keyword)
def test_damage_never_raises_anything_else_or_names_the_patient(syntax: uids.UID) -> None:
    data = encoded(lesion(40, 30), syntax)
    chance = random.Random(str(syntax))
    for _ in range(50):
        try:
            found = decode(mutated(data, chance), SIZE, max_pixels=1_000_000)
        except DecodeError as error:
            assert_no_patient(error)
        else:
            assert found.canvas.shape == (SIZE, SIZE, 3)


def test_the_decoder_process_gives_the_same() -> None:
    decoder = Decoder()
    data = encoded(IMAGE, uids.JPEGLSLossless)
    np.testing.assert_array_equal(decoder.decode(data, SIZE).canvas, expected(IMAGE))
    with pytest.raises(DecodeError, match="DICOM CT Image Storage is not supported"):
        decoder.decode(NOT_READ["CT Image Storage"](), SIZE)
    decoder.close()
