"""Canvases: the decoded images, kept in Ray's object store between epochs.

Ray keeps them once per node, shares them between workers without copying, spills them to disk when
memory is short, and decodes a chunk again when its node is lost.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch

from lesioncam.errors import RunFailedError
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import read_uri
from lesioncam.vision.classifier import to_channels_first
from lesioncam.vision.copies import thumbnail
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoder
from lesioncam.vision.lesion_masks import estimate_lesion_masks

_RETRIES = 10  # of a chunk whose worker or node was lost
_DECODER = Decoder()  # of one worker process
CHUNK = 16  # images that are decoded, kept and moved together: 5 MB at a canvas of 320


@dataclass(frozen=True)
class Chunk:
    """The images of one decode task, as the object store keeps them.

    Attributes:
        pixels: (c, S, S, 3) uint8, c at most CHUNK; black where an image could not be decoded.
        good: (c,) bool, whether each could be decoded.
    """

    pixels: np.ndarray
    good: np.ndarray


@dataclass(frozen=True)
class Canvases:
    """References to n decoded images.

    Attributes:
        chunks: each a `Chunk` in the object store.
        rows: (n,) int64; image i is row `rows[i] % CHUNK` of chunk `rows[i] // CHUNK`.
    """

    chunks: tuple[ray.ObjectRef, ...]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """(m, S, S, 3) uint8: copies of the images at `indices` (m,), in this order.

        Raises:
            RunFailedError: an image was decoded again after a node was lost, and that failed.
        """
        rows = self.rows[indices]
        images: dict[int, np.ndarray] = {}
        for number in np.unique(rows // CHUNK):
            chunk: Chunk = ray.get(self.chunks[number])
            for row in rows[rows // CHUNK == number]:
                if not chunk.good[row % CHUNK]:
                    raise RunFailedError(
                        "an image could not be read again after its node was lost; run the same "
                        "command again"
                    )
                images[row] = chunk.pixels[row % CHUNK]
        return np.stack([images[row] for row in rows])

    def take(self, indices: np.ndarray) -> "Canvases":
        """The images at `indices`, in this order."""
        return Canvases(self.chunks, self.rows[indices])

    def join(self, others: "Canvases") -> "Canvases":
        """These images, then the others."""
        rows = np.concatenate([self.rows, others.rows + CHUNK * len(self.chunks)])
        return Canvases(self.chunks + others.chunks, rows)


@dataclass(frozen=True)
class Decoded:
    """A list of images after decoding; m of them could be decoded.

    Attributes:
        canvases: of those m.
        good: (m,) int64, their indices in the list.
        failed: how many could not be decoded, by error kind.
        sizes: (m, 2) int64, width and height of their files, in pixels.
        thumbnails: (m, 16, 16, 3) uint8, to find copies by.
        estimated_masks: (m, 32, 32) bool, as `estimate_lesion_masks` gives them.
    """

    canvases: Canvases
    good: np.ndarray
    failed: Counter[str]
    sizes: np.ndarray
    thumbnails: np.ndarray
    estimated_masks: np.ndarray


def decode_canvases(uris: Sequence[str], size: int) -> Decoded:
    """Fetch and decode images on the cluster, to canvases of `size` pixels."""
    task = ray.remote(num_cpus=1, num_returns=2, max_retries=_RETRIES)(_decode_chunk)
    started = [
        task.remote(list(uris[start : start + CHUNK]), size) for start in range(0, len(uris), CHUNK)
    ]
    outcomes = [outcome for _, chunk in started for outcome in ray.get(chunk)]
    good = np.array([i for i, outcome in enumerate(outcomes) if outcome.kind is None], np.int64)
    return Decoded(
        Canvases(tuple(chunk for chunk, _ in started), good),
        good,
        Counter(outcome.kind for outcome in outcomes if outcome.kind is not None),
        np.array([outcomes[index].size for index in good], np.int64),
        np.array([outcomes[index].thumbnail for index in good]),
        np.array([outcomes[index].estimated_mask for index in good]),
    )


@dataclass(frozen=True)
class _Outcome:
    """One image: its error kind, or its size, thumbnail and estimated lesion mask."""

    kind: str | None
    size: tuple[int, int] | None = None
    thumbnail: np.ndarray | None = None
    estimated_mask: np.ndarray | None = None


def _decode_chunk(uris: list[str], size: int) -> tuple[Chunk, list[_Outcome]]:
    canvases = np.zeros((len(uris), size, size, 3), np.uint8)
    kinds: list[str | None] = []
    sizes: list[tuple[int, int] | None] = []
    for row, uri in enumerate(uris):
        try:
            decoded = _DECODER.decode(read_uri(uri), size)
            canvases[row] = decoded.canvas
            kinds.append(None)
            sizes.append((decoded.width, decoded.height))
        except (StoreError, DecodeError) as error:
            kinds.append(str(error.kind))
            sizes.append(None)
    masks = estimate_lesion_masks(to_channels_first(torch.from_numpy(canvases))).numpy()
    return Chunk(canvases, np.array([kind is None for kind in kinds])), [
        _Outcome(None, pixels, thumbnail(canvas), mask) if kind is None else _Outcome(kind)
        for kind, pixels, canvas, mask in zip(kinds, sizes, canvases, masks, strict=True)
    ]
