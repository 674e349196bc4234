"""The challenge's public bucket on a local S3 server: the published names, with drawn images."""

import io
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import boto3
import numpy as np

from tests.messy import lesion

if TYPE_CHECKING:
    from mypy_boto3_s3.literals import ObjectCannedACLType

BUCKET, PREFIX = "isic-challenge-data", "2017/"
SUPERPIXELS_BYTES = 40_000
# Images of each class, and the number of the first: the classes alternate.
COUNTS = {"Training": (2, 0), "Validation": (9, 100), "Test_v2": (1, 200)}


def image_ids(official: str) -> list[str]:
    """The ids of a split; melanoma, seborrheic keratosis, nevus, melanoma and so on."""
    count, first = COUNTS[official]
    return [f"ISIC_{number:07d}" for number in range(first, first + 3 * count)]


@cache
def published() -> Mapping[str, bytes]:
    """The objects by name."""
    objects: dict[str, bytes] = {}
    for official in COUNTS:
        ids = image_ids(official)
        data: dict[str, bytes] = {}
        masks: dict[str, bytes] = {}
        for number, image_id in enumerate(ids):
            image, mask = io.BytesIO(), io.BytesIO()
            lesion(96, 72, number).save(image, "JPEG")
            lesion(96, 72, number).convert("1").save(mask, "PNG")
            noise = np.random.default_rng(number).bytes(SUPERPIXELS_BYTES)
            data |= {f"{image_id}.jpg": image.getvalue(), f"{image_id}_superpixels.png": noise}
            masks[f"{image_id}_segmentation.png"] = mask.getvalue()
        ages = "".join(f"{image_id},{number},female\n" for number, image_id in enumerate(ids))
        table = f"image_id,age_approximate,sex\n{ages}"
        data[f"ISIC-2017_{official}_Data_metadata.csv"] = table.encode()
        names = {
            "Data.zip": zipped(data, f"ISIC-2017_{official}_Data"),
            "Part1_GroundTruth.zip": zipped(masks, f"ISIC-2017_{official}_Part1_GroundTruth"),
            "Part3_GroundTruth.csv": labels(ids),
        }
        objects |= {f"ISIC-2017_{official}_{name}": content for name, content in names.items()}
    return objects


def labels(ids: list[str]) -> bytes:
    """A table of labels: the classes in rotation."""
    marks = ("1.0,0.0", "0.0,1.0", "0.0,0.0")
    rows = [f"{image_id},{marks[number % 3]}" for number, image_id in enumerate(ids)]
    return "\n".join(["image_id,melanoma,seborrheic_keratosis", *rows, ""]).encode()


def zipped(files: Mapping[str, bytes], folder: str) -> bytes:
    """A zip of a folder, as macOS makes it; PNGs are deflated, all else is stored."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{folder}/", b"")
        for name, data in files.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(".png") else zipfile.ZIP_STORED
            archive.writestr(f"{folder}/{name}", data, kind)
        archive.writestr(f"__MACOSX/{folder}/._{min(files)}", b"of macOS")
    return content.getvalue()


class Challenge:
    """The bucket, with everything that is published; all can be read without credentials."""

    def __init__(self) -> None:
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=BUCKET)
        self._changed = set(published())
        self.restore()

    def put(self, name: str, content: bytes, acl: "ObjectCannedACLType" = "public-read") -> None:
        """Replace an object."""
        self._changed.add(name)
        self._client.put_object(Bucket=BUCKET, Key=PREFIX + name, Body=content, ACL=acl)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._changed.add(name)
        self._client.delete_object(Bucket=BUCKET, Key=PREFIX + name)

    def restore(self) -> None:
        """Put back what was changed."""
        for name in self._changed & published().keys():
            self.put(name, published()[name])
        self._changed.clear()
