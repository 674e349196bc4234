"""DICOM: a photograph in a DICOM file, as an image that Pillow opens like any other.

A file names its patient. So only the elements that describe pixels are read, and no message of
pydicom or of a codec is passed on. Needs pydicom.
"""

import io
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.encaps import get_frame
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from lesioncam.vision.formats import unreadable_variant

_PHOTOGRAPHS = frozenset({uids.VLPhotographicImageStorage, uids.DermoscopicPhotographyImageStorage})
_SECONDARY_CAPTURES = frozenset(
    {
        uids.SecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
# Of secondary captures: external camera, dermoscopy, other, and none given.
_MODALITIES = frozenset({"XC", "DMS", "OT", ""})

_PILLOW_SYNTAXES = frozenset(
    {uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEG2000Lossless, uids.JPEG2000}
)
_NATIVE_SYNTAXES = frozenset(
    {
        uids.ImplicitVRLittleEndian,
        uids.ExplicitVRLittleEndian,
        uids.ExplicitVRBigEndian,
        uids.DeflatedExplicitVRLittleEndian,
    }
)
# Other compressed ones: their names, and the decoder that pydicom uses for each.
_PLUGINS = {
    uids.RLELossless: ("RLE", "pydicom"),
    uids.JPEGLSLossless: ("JPEG-LS", "pyjpegls"),
    uids.JPEGLSNearLossless: ("JPEG-LS", "pyjpegls"),
    uids.JPEGLossless: ("lossless JPEG", "pylibjpeg"),
    uids.JPEGLosslessSV1: ("lossless JPEG", "pylibjpeg"),
}

_END_OF_IMAGE = b"\xff\xd9"  # of a lossless JPEG
_RGB_COMPONENTS = [*b"RGB"]  # names of a JPEG's components by which libjpeg knows RGB

_SAMPLES = {  # of a pixel, by photometric interpretation
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_TAGS = [
    "SOPClassUID",
    "Modality",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ICCProfile",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "PixelData",
]


class DicomImage(ImageFile.ImageFile):
    """The first frame of a DICOM photograph, as it is stored: upright by the standard."""

    format = "DICOM"
    format_description = "DICOM photograph"

    def _open(self) -> None:
        """Read the header.

        Raises:
            SyntaxError: it is damaged, or is not that of a photograph that can be read.
        """
        assert self.fp is not None
        try:
            dataset = _read(self.fp, stop_before_pixels=True)
            reason = _unreadable(dataset)
            profile = dataset.get("ICCProfile")
            self._size = _integer(dataset, "Columns"), _integer(dataset, "Rows")
            samples = _integer(dataset, "SamplesPerPixel")
            photometric = dataset.PhotometricInterpretation
        except MemoryError:
            raise
        except Exception as error:  # pydicom raises many types on damaged headers
            raise SyntaxError("damaged header") from error
        if reason is not None or samples != _SAMPLES[photometric]:
            raise SyntaxError(reason or "another number of samples than its colors have")
        self._mode = "L" if samples == 1 else "RGB"
        if isinstance(profile, bytes):
            self.info["icc_profile"] = profile
        self._draft_size = self._size
        self._is_decoded = False

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> None:  # noqa: ARG002
        """As Pillow's: a JPEG may be decoded at a reduced scale of at least this size."""
        if size is not None:
            self._draft_size = size

    def load(self) -> Any:
        """Decode the pixels.

        Raises:
            OSError: they are damaged or incomplete.
        """
        if not self._is_decoded:
            assert self.fp is not None
            self.fp.seek(0)
            try:
                frame = _first_frame(_read(self.fp), self._draft_size)
            except MemoryError:
                raise
            except Exception as error:  # pydicom and codecs raise many types on damaged pixels
                raise OSError("the DICOM file has no whole first frame") from error
            self._is_decoded = True
            self.im, self._mode, self._size = frame.im, frame.mode, frame.size
        return super().load()


def unreadable_dicom(data: bytes) -> str | None:
    """What kind of DICOM file this is, if it is one that is not read; else None."""
    try:
        header = _read(io.BytesIO(data), stop_before_pixels=True)
        return _unreadable(header) or _unreadable_frame(_read(io.BytesIO(data)))
    except Exception:  # damaged, and pydicom raises many types on that
        return None


def _read(file: IO[bytes], *, stop_before_pixels: bool = False) -> Dataset:
    """The elements of a file that describe pixels, and its transfer syntax."""
    dataset = dcmread(file, force=True, specific_tags=_TAGS, stop_before_pixels=stop_before_pixels)
    if not dataset.file_meta:  # the file begins with its data set, which is not compressed
        is_implicit, is_little_endian = dataset.original_encoding
        little = uids.ImplicitVRLittleEndian if is_implicit else uids.ExplicitVRLittleEndian
        syntax = little if is_little_endian else uids.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _unreadable(dataset: Dataset) -> str | None:
    """What kind of DICOM this is by its header, if it is one that is not read; else None.

    Values of the file are repeated only if they are of the standard's vocabulary.
    """
    return _unreadable_object(dataset) or _unreadable_pixels(dataset)


def _unreadable_object(dataset: Dataset) -> str | None:
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.MediaStorageSOPClassUID
    if sop_class not in _PHOTOGRAPHS | _SECONDARY_CAPTURES:
        return f"DICOM {_name(sop_class, 'object of an unknown class')}"
    if sop_class in _SECONDARY_CAPTURES and (dataset.get("Modality") or "") not in _MODALITIES:
        return f"DICOM {_name(sop_class, '')} of another modality"
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _PLUGINS:
        name, plugin = _PLUGINS[syntax]
        return None if plugin in get_decoder(syntax).available_plugins else f"DICOM in {name}"
    if syntax not in _PILLOW_SYNTAXES | _NATIVE_SYNTAXES:
        return f"DICOM in {_name(syntax, 'an unknown transfer syntax')}"
    return None


def _unreadable_pixels(dataset: Dataset) -> str | None:
    photometric = dataset.get("PhotometricInterpretation", "RGB")
    if photometric not in _SAMPLES:
        known = photometric in {str(one) for one in PhotometricInterpretation}
        return f"DICOM in {photometric if known else 'unknown'} color"
    if (bits := _integer(dataset, "BitsAllocated")) not in (8, 16):
        return f"DICOM with {bits} bits a sample"
    if _integer(dataset, "PixelRepresentation") != 0:
        return "DICOM with signed samples"
    if _integer(dataset, "HighBit") != _integer(dataset, "BitsStored") - 1:
        return "DICOM with samples that are not in the low bits"
    syntax = dataset.file_meta.TransferSyntaxUID
    if photometric == "PALETTE COLOR" and syntax in _PILLOW_SYNTAXES:
        return f"DICOM with a palette in {syntax.name}"
    return None


def _unreadable_frame(dataset: Dataset) -> str | None:
    """What kind of compressed frame the file has, if it is one that is not read; else None."""
    if dataset.file_meta.TransferSyntaxUID not in _PILLOW_SYNTAXES:
        return None
    variant = unreadable_variant(_frame_bytes(dataset))
    return variant and f"DICOM with {variant}"


def _name(uid: UID, unknown: str) -> str:
    """The standard's name of a UID."""
    return uid.name if uid.name != uid else unknown


def _integer(dataset: Dataset, keyword: str) -> int:
    value = dataset[keyword].value
    if not isinstance(value, int):
        raise TypeError(keyword)
    return value


def _frame_bytes(dataset: Dataset) -> bytes:
    """The file that is the first frame, where the frames are compressed."""
    frames = dataset.get("NumberOfFrames") or 1
    return get_frame(dataset.PixelData, 0, number_of_frames=frames)


def _first_frame(dataset: Dataset, draft_size: tuple[int, int]) -> Image.Image:
    """The first frame as an image of mode L or RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _PILLOW_SYNTAXES:
        pixels, photometric = _by_pillow(dataset, draft_size)
    else:
        pixels, photometric = _by_pydicom(dataset, syntax)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if photometric == "MONOCHROME1":
        pixels = 255 - pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return Image.merge("YCbCr", image.split()).convert("RGB")
    return image


def _by_pillow(dataset: Dataset, draft_size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """A first frame that is a JPEG or JPEG 2000 file: its pixels, and how they hold color."""
    photometric = str(dataset.PhotometricInterpretation)
    image = Image.open(io.BytesIO(_frame_bytes(dataset)), formats=("JPEG", "JPEG2000"))
    if image.size != (dataset.Columns, dataset.Rows):
        raise ValueError("the frame has another size")
    if len(image.getbands()) != _SAMPLES[photometric]:
        raise ValueError("the frame has another number of samples")
    if isinstance(image, JpegImageFile) and len(image.getbands()) == 3:
        # A JPEG says itself whether it is in YCbCr. Without a word of it libjpeg thinks it is.
        is_marked = {"jfif", "adobe"} & set(image.info)
        is_named = [component[0] for component in image.layer] == _RGB_COMPONENTS
        is_mistaken = photometric == "RGB" and not is_marked and not is_named
        image.draft("YCbCr" if is_mistaken else "RGB", draft_size)
        return np.asarray(image), "RGB"
    image.draft(image.mode, draft_size)
    return np.asarray(image), photometric


def _by_pydicom(dataset: Dataset, syntax: UID) -> tuple[np.ndarray, str]:
    """A first frame in any other transfer syntax: its pixels, and how they hold color.

    Samples fill their 8 or 16 bits, but for the indices of a palette.
    """
    _, plugin = _PLUGINS.get(syntax, ("", ""))
    if dataset["PixelData"].is_undefined_length != (syntax in _PLUGINS):
        raise ValueError("compressed, against its transfer syntax, or not compressed")
    if plugin == "pylibjpeg" and not _frame_bytes(dataset).rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise ValueError("the frame is cut off")  # libjpeg would fill it up
    pixels, found = get_decoder(syntax).as_array(dataset, index=0, raw=True, decoding_plugin=plugin)
    photometric = str(found["photometric_interpretation"])
    if photometric != "PALETTE COLOR":
        pixels = pixels << (8 * pixels.itemsize - dataset.BitsStored)
    return pixels, photometric
