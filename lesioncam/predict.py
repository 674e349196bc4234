"""Predict: classify images in this process, by the code of a scoring job, without Ray.

`load("model").predict(["a.jpg", "s3://bucket/b.jpg"])` gives the scores as a DataFrame.
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image

from lesioncam.arguments import check_argument
from lesioncam.columns import PRECISIONS
from lesioncam.errors import InputError
from lesioncam.schema import MANIFEST_SCHEMA, scores_schema
from lesioncam.scoring.read import READ_THREADS, decode_bytes, read_canvas
from lesioncam.scoring.rows import Outcome, finish, with_canvases
from lesioncam.scoring.stages import Classify, Localize, load_stages
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.listing import image_id, stat_listed
from lesioncam.storage.local import local_path
from lesioncam.storage.uri_list import is_supported
from lesioncam.vision.decode import DecodeError, decode_image
from lesioncam.vision.hardware import BATCH_SIZES, choose_precision, hardware_of

ImageInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

_ONE = (str, os.PathLike, bytes, Image.Image)
_BLOCK = 64  # images whose canvases are in memory at once
_PILLOW = threading.Lock()  # Pillow loads an opened image late, and not from two threads at once


def load(
    bundle: str | os.PathLike[str],
    precision: str = "auto",
    device: str | torch.device | None = None,
) -> "Classifier":
    """Load a trained model.

    Args:
        bundle: a directory or s3:// prefix that `lesioncam train` wrote.
        precision: of the convolutions: `float32`, `bfloat16`, `int8`, or `auto` for the fastest
            that the device computes in natively and the bundle has.
        device: `cpu`, `cuda` or `cuda:1`; None for a GPU if torch can use one.

    Raises:
        InputError: the bundle is missing or damaged, there is no such precision or device, or the
            device or the bundle does not have this precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    check_argument("bundle", bundle)
    target = _device(device)
    loaded = load_bundle(os.fspath(bundle), "bundle")
    settings = loaded.settings
    weights, quantization = (loaded.stage1, loaded.stage2), loaded.quantization
    try:
        precision = choose_precision(
            precision, hardware_of(target), quantized=quantization is not None
        )
    except InputError as error:
        error.name_keywords()
        raise
    localize, classify = load_stages(settings, weights, target, precision, quantization)
    return Classifier(
        classes=settings.classes,
        model=loaded.digest,
        precision=precision,
        canvas_size=settings.canvas_size,
        batch_size=BATCH_SIZES[target.type],
        localize=localize,
        classify=classify,
    )


@dataclass(frozen=True)
class Classifier:
    """A loaded model; `load` makes one.

    Attributes:
        classes: the model's, in the order of its columns.
        model: the bundle's digest.
        precision: of the convolutions.
        canvas_size: the side of the square that images are decoded to, in pixels.
        batch_size: images of a forward pass.
        localize: stage 1.
        classify: stage 2.
    """

    classes: tuple[str, ...]
    model: str
    precision: str
    canvas_size: int
    batch_size: int
    localize: Localize
    classify: Classify

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> pd.DataFrame:
        """Classify images.

        Args:
            images: one or many of: a path, an `s3://bucket/key`, the bytes of an image file, a PIL
                image, a uint8 array of (H, W, 3) RGB or (H, W) gray. An iterable is read some
                dozens at a time. Files and bytes are decoded in a process of their own. A large
                JPEG that PIL opened gives slightly other numbers than its path, which is decoded at
                a reduced scale.

        Returns:
            A row for each image, in this order, with the columns and types that
            `pandas.read_parquet` gives of a job's output. Where an image cannot be read or decoded,
            `status` is `failed`, and `error_kind` and `error` say why. `run_id` is null, and
            `uri`, `image_id`, `size`, `etag` and `last_modified` are where they are unknown.

        Raises:
            InputError: an image of another type or shape, or a directory.
        """
        parts = [scores_schema(self.classes).empty_table()]
        checked = (_check(image, index) for index, image in enumerate(_many(images)))
        with ThreadPoolExecutor(READ_THREADS) as threads:
            while block := list(islice(checked, _BLOCK)):
                decoded = threads.map(_decode, block, repeat(self.canvas_size))
                parts.append(self._score(list(decoded)))
        scores: pd.DataFrame = pa.concat_tables(parts).to_pandas()
        return scores

    def _score(self, decoded: list[tuple[dict[str, Any], Outcome]]) -> pa.Table:
        """The finished rows of images, each given as its manifest row and its canvas."""
        sources, outcomes = zip(*decoded, strict=True)
        table = pa.Table.from_pylist(list(sources), MANIFEST_SCHEMA)
        table = with_canvases(table, outcomes, self.canvas_size)
        starts = range(0, table.num_rows, self.batch_size)
        batches = (table.slice(start, self.batch_size) for start in starts)
        rows = pa.concat_tables(self.classify(self.localize(batch)) for batch in batches)
        now = datetime.now(UTC)
        return finish(rows, self.classes, model=self.model, run_id=None, not_before=now)


def _device(name: str | torch.device | None) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):  # text that is no device, or another type
        device = torch.device("meta")
    if device.type not in BATCH_SIZES:
        expected = ", ".join(BATCH_SIZES)
        raise InputError(f"device: expected one of {expected}, or cuda:N, got {str(name)!r}")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        available = f"torch can use {gpus} here" if gpus else "torch can use no GPU here"
        raise InputError(f"device: {available}, got {str(name)!r}; use 'cpu' or leave it out")
    return device


def _many(images: Any) -> Iterable[ImageInput]:
    # Numbers of up to three dimensions are one image; other arrays hold many images.
    is_array = isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind in "biuf"
    if is_array or isinstance(images, _ONE) or not isinstance(images, Iterable):
        return [images]
    return images


def _check(image: ImageInput, index: int) -> str | bytes | Image.Image:
    """The same image as a uri, the bytes of a file, or a PIL image."""
    got = type(image).__name__
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return _check_uri(os.fspath(image), index)
    if isinstance(image, np.ndarray):
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype == np.uint8 and is_image and image.size:
            return Image.fromarray(image)
        got = f"an array of {image.dtype} {image.shape}"
    raise InputError(
        f"images[{index}]: expected a path, an s3:// URI, bytes, a PIL image or a uint8 array of "
        f"(H, W, 3) or (H, W), got {got}"
    )


def _check_uri(uri: str, index: int) -> str:
    check_argument(f"images[{index}]", uri)
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"images[{index}]: the name is not UTF-8; rename the file, or pass its bytes"
        ) from error
    if not is_supported(uri):
        raise InputError(f"images[{index}]: {uri!r} is neither a path nor s3://bucket/key")
    if not uri.startswith("s3://") and Path(local_path(uri)).is_dir():
        raise InputError(
            f"images[{index}]: {uri!r} is a directory; pass its files, for example "
            f"sorted(Path({uri!r}).glob('*.jpg'))"
        )
    return uri


def _decode(image: str | bytes | Image.Image, canvas_size: int) -> tuple[dict[str, Any], Outcome]:
    """An image's manifest row, and its canvas or why there is none."""
    if isinstance(image, bytes):
        return {"size": len(image)}, decode_bytes(image, canvas_size)
    if isinstance(image, str):
        entry = stat_listed(image)
        row = {**asdict(entry), "image_id": image_id(entry.uri)}
        return row, read_canvas(entry.uri, entry.size, entry.archived, canvas_size)
    try:
        with _PILLOW:
            return {}, decode_image(image, canvas_size)
    except DecodeError as error:
        return {}, error
