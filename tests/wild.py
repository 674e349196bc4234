r"""Files as people really have them: what each should give, and what it gives here.

    python -m tests.wild    # writes the table of docs/reference/formats.md

The files are in ../shared/wild/images, and are not part of the project.
"""

from lesioncam.storage.hidden import is_hidden
from lesioncam.storage.listing import HIDDEN_FOLDER, Listing, reason_to_skip
from lesioncam.vision.decode import DecodeError, decode
from tests.conftest import SHARED
from tests.docs_page import DOCS, write_section

FOLDER = SHARED / "wild" / "images"
PAGE = DOCS / "reference" / "formats.md"
SIZE = 224  # of the canvases

# File -> what it stands for, and what it should give.
EXPECTED = {
    "srgb_reference.jpg": ("an ordinary photograph", "ok, 320 x 240"),
    "jfif_extension.jfif": ("an older ending of JPEG", "ok, 320 x 240"),
    "icc_display_p3.jpg": ("its colors are in Display P3, as phones write", "ok, 320 x 240"),
    "png_alpha_all_zero.png": ("alpha is zero everywhere", "ok, 320 x 240"),
    "bmp_32_v4_alpha_mask_zero.bmp": ("likewise, as Photoshop writes", "ok, 320 x 240"),
    "png_bad_crc_text.png": ("a comment with a wrong checksum", "ok, 320 x 240"),
    "png_ztxt_over_1MB.png": ("a very large comment", "ok, 320 x 240"),
    "png_icc_over_1MB.png": ("a very large ICC profile", "ok, 320 x 240"),
    "missing_eoi.jpg": ("only the end marker is missing", "ok, 320 x 240"),
    "tif_thumbnail_first.tif": ("a thumbnail is the first page", "ok, 320 x 240"),
    "heic_brand_heim.jpg": ("HEIC named .jpg", "ok, 320 x 240"),
    "heic_brand_heis.jpg": ("likewise", "ok, 320 x 240"),
    "j2k_codestream_named.jpg": ("JPEG 2000 named .jpg", "ok, 320 x 240"),
    "jxl_codestream_named.jpg": ("JPEG XL named .jpg", "unsupported: JPEG XL"),
    "jpeg_12bit.jpg": ("more than 8 bits a channel", "unsupported: 12-bit JPEG"),
    "jpeg_lossless_16bit_grey.jpg": ("as in DICOM files", "unsupported: lossless JPEG"),
    "jpegls.jpg": ("likewise", "unsupported: JPEG-LS"),
    "tif_webp.tif": ("a rare compression", "unsupported: TIFF with WebP compression"),
    "ISIC_0000001_segmentation.png": ("a mask of ISIC", "not listed: mask (_segmentation)"),
    "IMD002_lesion/IMD002_lesion.bmp": ("a mask of PH2", "not listed: mask (_lesion)"),
    "@eaDir/jpg_plain.jpg/SYNOPHOTO_THUMB_M.jpg": (
        "a thumbnail of a Synology server",
        "not listed: hidden folder",
    ),
    "__MACOSX/._jpg_plain.jpg": ("what macOS puts into archives", "not listed: hidden folder"),
}


def outcome(name: str) -> str:
    """What becomes of one of the files."""
    listed = {entry.uri for entry in Listing(str(FOLDER))}
    if str(FOLDER / name) not in listed:
        return f"not listed: {_reason(name)}"
    try:
        decoded = decode((FOLDER / name).read_bytes(), SIZE)
    except DecodeError as error:
        return f"{error.kind}: {error.message.partition(' is not supported')[0]}"
    return f"ok, {decoded.width} x {decoded.height}"


def _reason(name: str) -> str | None:
    """Why a file is not listed."""
    *folders, file = name.split("/")
    return HIDDEN_FOLDER if any(map(is_hidden, folders)) else reason_to_skip(file)


def table() -> str:
    """The table in Markdown."""
    lines = ["| file | what it stands for | should give | gives |", "|---|---|---|---|"]
    for name, (meaning, expected) in EXPECTED.items():
        lines.append(f"| `{name}` | {meaning} | {expected} | {outcome(name)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into the page."""
    write_section(PAGE, "wild", table())


if __name__ == "__main__":
    main()
