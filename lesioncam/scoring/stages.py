"""The operators of the scoring pipeline: each takes a `pyarrow.Table` and returns one.

Pixels travel as fixed-size binary columns, which Arrow and Ray move without copying. A failed image
is a row like any other; the networks see only the good ones.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from lesioncam import __version__
from lesioncam.schema import (
    BOX_COLUMNS,
    MANIFEST_SCHEMA,
    ErrorKind,
    Status,
    probability_columns,
    scores_schema,
)
from lesioncam.storage.bundle import ModelSettings, load_network
from lesioncam.storage.lease import check_holder
from lesioncam.storage.listing import image_id, read_table
from lesioncam.storage.results import Results
from lesioncam.storage.store import StoreError, open_store, read_uri, stat_uri
from lesioncam.vision.crop import boxes_in_image, sample_boxes
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoders
from lesioncam.vision.localise import classify, combine, localise, to_channels_first
from lesioncam.vision.network import VGGGAP, prepare_for_inference

MAX_BYTES = 2**30  # of a source file; larger ones are not fetched
_FETCH_THREADS = 8
_LARGE = 2**26  # bytes; larger files, and those of unknown size, are in memory one at a time
_LARGE_ONE = threading.Lock()
_READS = 3  # of a file that comes shorter than it is
_DECODERS = Decoders(2)  # of one worker process: decodes take the memory

_DECODED_FIELDS = (
    pa.field("status", pa.string()),
    pa.field("error_kind", pa.string()),
    pa.field("error", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
)


@dataclass(frozen=True)
class Compute:
    """Where and how an actor runs its network."""

    device: str
    precision: str
    threads: int
    batch_size: int

    def load(self, settings: ModelSettings, state: ray.ObjectRef) -> VGGGAP:
        """The network of one stage, ready for inference in this process."""
        if self.device == "cpu":
            torch.set_num_threads(self.threads)
        network = load_network(settings, ray.get(state))
        return prepare_for_inference(network, torch.device(self.device), self.precision)

    def batch(self, column: pa.ChunkedArray, side: int) -> tuple[Tensor, int]:
        """A pixel column as (batch_size, 3, side, side) on the device, and how many are real.

        The rest is black: every pass has one shape, so that an image's result
        does not depend on how many others came with it.
        """
        pixels = pixels_of(column, side)
        batch = np.zeros((self.batch_size, side, side, 3), np.uint8)
        batch[: len(pixels)] = pixels
        return to_channels_first(torch.from_numpy(batch)).to(self.device), len(pixels)


def read_todo(table: pa.Table, todo: str) -> pa.Table:
    """File names of what is left to do -> the manifest rows in them."""
    store = open_store(todo)
    return pa.concat_tables([read_table(store, name) for name in table["name"].to_pylist()])


def fetch_and_decode(table: pa.Table, canvas_side: int, window: Any) -> pa.Table:
    """Manifest rows -> the same with `canvas`, the image's size, and a status.

    Waits until there is room for them in the window. Threads fetch; what they fetched is decoded
    in processes of its own.
    """
    ray.get(window.enter.remote(*_extent_of(table)))
    canvases = np.zeros((table.num_rows, canvas_side, canvas_side, 3), np.uint8)

    def one(place: int, uri: str, size: int | None) -> dict[str, Any]:
        try:
            with _LARGE_ONE if size is None or size > _LARGE else nullcontext():
                decoded = _DECODERS.decode(_fetch(uri, size), canvas_side)
        except (StoreError, DecodeError) as error:
            width, height = getattr(error, "size", None) or (None, None)
            return {
                "status": Status.FAILED,
                "error_kind": error.kind,
                "error": error.message,
                "width": width,
                "height": height,
            }
        canvases[place] = decoded.canvas
        return {"status": Status.OK, "width": decoded.width, "height": decoded.height}

    with ThreadPoolExecutor(_FETCH_THREADS) as threads:
        sources = (table["uri"].to_pylist(), table["size"].to_pylist())
        outcomes = list(threads.map(one, range(table.num_rows), *sources))
    for field in _DECODED_FIELDS:
        values = [outcome.get(field.name) for outcome in outcomes]
        table = table.append_column(field, pa.array(values, field.type))
    return table.append_column("canvas", pixel_column(canvases))


def _fetch(uri: str, size: int | None) -> bytes:
    if size is not None and size > MAX_BYTES:
        limit = f"{MAX_BYTES / 2**30:g} GiB"
        raise StoreError(ErrorKind.TOO_LARGE, f"{size:,} bytes; the limit is {limit}")
    try:
        for _ in range(_READS):
            data = read_uri(uri)
            # One that was replaced is scored as it is now; its row keeps the version that was
            # listed, so that the next run does it again. Else it was cut short on the way.
            if size is None or len(data) == size or len(data) == stat_uri(uri).size:
                return data
    except StoreError as error:
        if error.kind is ErrorKind.NOT_FOUND and size is not None:  # it, or the disk it was on
            raise StoreError(ErrorKind.UNREACHABLE, "it was listed, but is not there") from error
        raise
    raise StoreError(ErrorKind.UNREACHABLE, "the store sends less than it has")


class Localise:
    """Stage 1: canvases -> probabilities, CAM, box and crop."""

    def __init__(self, settings: ModelSettings, state: ray.ObjectRef, compute: Compute):
        self._settings, self._compute = settings, compute
        self._network = compute.load(settings, state)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace `canvas` by `crop` and what stage 1 found; null and black in failed rows."""
        settings = self._settings
        good = _good_rows(table)
        chosen = table.take(good)
        canvases, count = self._compute.batch(chosen["canvas"], settings.canvas_side)
        found = localise(
            self._network, canvases, settings.input_side, settings.crop, settings.flips
        )
        crops = sample_boxes(canvases, found.views, settings.input_side)
        boxes = boxes_in_image(
            found.boxes[:count].cpu(),
            settings.canvas_side,
            torch.from_numpy(chosen["width"].to_numpy().astype(np.int64)),
            torch.from_numpy(chosen["height"].to_numpy().astype(np.int64)),
        )
        maps = found.maps[:count].cpu().numpy()
        columns: dict[str, pa.Array] = {
            **_probability_arrays(found.probabilities[:count], settings.classes, "stage1"),
            **{
                name: pa.array(boxes[:, i].numpy(), pa.int32())
                for i, name in enumerate(BOX_COLUMNS)
            },
            "cam_flat": pa.array(found.flat[:count].cpu().numpy()),
            "cam": pa.array([one.tobytes() for one in maps], pa.binary()),
        }
        side = settings.input_side
        crop_pixels = np.zeros((table.num_rows, side, side, 3), np.uint8)
        crop_pixels[good.to_numpy()] = crops[:count].permute(0, 2, 3, 1).cpu().numpy()
        return _append_scattered(table.drop_columns("canvas"), good, columns).append_column(
            "crop", pixel_column(crop_pixels)
        )


class Classify:
    """Stage 2: crops -> probabilities, and the finished row in the scores' schema.

    A row is newer than all that stood there before its run, whatever this machine's clock says.
    """

    def __init__(
        self,
        settings: ModelSettings,
        state: ray.ObjectRef,
        compute: Compute,
        model: str,
        run_id: str,
        not_before: datetime,
    ):
        self._settings, self._compute = settings, compute
        self._model, self._run_id = model, run_id
        self._not_before = not_before
        self._schema = scores_schema(settings.classes)
        self._network = compute.load(settings, state)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Finish the rows; the result has the scores' schema and `row`, to name its part by."""
        settings = self._settings
        good = _good_rows(table)
        chosen = table.take(good)
        crops, count = self._compute.batch(chosen["crop"], settings.input_side)
        stage2 = classify(self._network, crops, self._settings.flips)[:count].cpu()
        stage1_columns = probability_columns(settings.classes, "stage1")
        stage1 = torch.from_numpy(np.stack([chosen[name].to_numpy() for name in stage1_columns], 1))
        final = combine(stage1, stage2, settings.stage2_weight)
        names = np.array(settings.classes, dtype=object)
        columns = {
            **_probability_arrays(final, settings.classes, "final"),
            **_probability_arrays(stage2, settings.classes, "stage2"),
            "prediction": pa.array(names[final.argmax(dim=1).numpy()], pa.string()),
        }
        rows = _append_scattered(table.drop_columns("crop"), good, columns)
        constant = {
            "model": self._model,
            "run_id": self._run_id,
            "lesioncam_version": __version__,
            "scored_at": max(self._not_before, datetime.now(UTC)),
        }
        for name, value in constant.items():
            array = pa.repeat(pa.scalar(value, self._schema.field(name).type), rows.num_rows)
            rows = rows.append_column(name, array)
        ids = pa.array([image_id(uri) for uri in rows["uri"].to_pylist()], pa.string())
        rows = rows.append_column("image_id", ids)
        finished = rows.select(self._schema.names).cast(self._schema)
        return finished.append_column(MANIFEST_SCHEMA.field("row"), rows["row"])


def write_part(table: pa.Table, output: str, run_id: str, window: Any) -> pa.Table:
    """Write a block of finished rows as one part file; returns its receipt.

    The file is named by the run and the first row's number, so that a repeated task replaces its
    own file. Makes room in the window for as many images.

    Returns:
        A table of `outcome` (`ok`, or the error kind) and `count`.
    """
    first, count = _extent_of(table)
    rows = table.drop_columns("row")
    results = Results(output)
    check_holder(results.store, run_id)
    results.write_part(f"part-{run_id}-{first:09d}.parquet", rows)
    window.leave.remote(first, count)
    outcomes = pc.value_counts(pc.coalesce(rows["error_kind"], rows["status"]))
    return pa.table({"outcome": outcomes.field("values"), "count": outcomes.field("counts")})


def _extent_of(table: pa.Table) -> tuple[int, int]:
    """The number of the first row, and how many there are."""
    return pc.min(table["row"]).as_py(), table.num_rows


def pixel_column(pixels: np.ndarray) -> pa.Array:
    """(N, side, side, 3) uint8 -> a fixed-size binary column of N rows, without copying."""
    width = int(np.prod(pixels.shape[1:]))
    data = pa.py_buffer(np.ascontiguousarray(pixels))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(pixels), [None, data])


def pixels_of(column: pa.ChunkedArray, side: int) -> np.ndarray:
    """A fixed-size binary column -> (N, side, side, 3) uint8."""
    width = side * side * 3
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column has no chunk to combine
        return np.zeros((0, side, side, 3), np.uint8)
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    flat = flat[array.offset * width : (array.offset + len(array)) * width]
    return flat.reshape(len(array), side, side, 3)


def _good_rows(table: pa.Table) -> pa.Array:
    """Places of the rows that are ok."""
    return pa.array(np.flatnonzero(pc.equal(table["status"], Status.OK).to_numpy()), pa.int64())


def _probability_arrays(
    probabilities: Tensor, classes: Sequence[str], stage: str
) -> dict[str, pa.Array]:
    values = probabilities.float().cpu().numpy()
    names = probability_columns(classes, stage)
    return {name: pa.array(values[:, i], pa.float32()) for i, name in enumerate(names)}


def _append_scattered(
    table: pa.Table, places: pa.Array, columns: Mapping[str, pa.Array]
) -> pa.Table:
    """Append columns that have values at `places` only, null elsewhere."""
    source = np.full(table.num_rows, -1)
    source[places.to_numpy()] = np.arange(len(places))
    indices = pa.array(source, pa.int64(), mask=source < 0)
    for name, values in columns.items():
        table = table.append_column(name, values.take(indices))
    return table
