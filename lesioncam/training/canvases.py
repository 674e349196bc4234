"""Canvases: the decoded training images, kept in Ray's object store between epochs.

Ray keeps them once a node, shares them between its workers without copying, writes them to disk
where memory is short, and decodes a chunk again where a node was lost.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from lesioncam.storage.store import StoreError, read_uri
from lesioncam.vision.decode import DecodeError, decode

_RETRIES = 10  # of a chunk whose worker or node was lost; a file that kills its worker ends here
CHUNK = 16  # images decoded, kept and moved together: 10 MB at a canvas of 448


@dataclass(frozen=True)
class Canvases:
    """References to decoded images, by number.

    Attributes:
        chunks: of each chunk, an (CHUNK, S, S, 3) uint8 array in the object store.
        places: (n,) int64: image i is at `places[i] % CHUNK` in chunk `places[i] // CHUNK`.
    """

    chunks: tuple[ray.ObjectRef, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """(m, S, S, 3): copies of these images, in this order."""
        places = self.places[numbers]
        images: dict[int, np.ndarray] = {}
        for chunk in np.unique(places // CHUNK):
            pixels = ray.get(self.chunks[chunk])
            for place in places[places // CHUNK == chunk]:
                images[place] = pixels[place % CHUNK]
        return np.stack([images[place] for place in places])

    def subset(self, chosen: np.ndarray) -> "Canvases":
        """The images where `chosen` (n,) is true."""
        return Canvases(self.chunks, self.places[chosen])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Image numbers 0 to n - 1 in consecutive groups of at most `size`."""
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))


def decode_canvases(uris: Sequence[str], side: int) -> tuple[Canvases, np.ndarray, Counter[str]]:
    """Fetch and decode images on the cluster.

    Args:
        uris: of the images.
        side: the canvas's side S.

    Returns:
        the canvases of the images that could be decoded, (m,) their numbers in `uris`, and how
        many failed of each error kind.
    """
    task = ray.remote(num_cpus=1, num_returns=2, max_retries=_RETRIES)(_decode_chunk)
    started = [
        task.remote(list(uris[start : start + CHUNK]), side) for start in range(0, len(uris), CHUNK)
    ]
    kinds = [kind for _, outcome in started for kind in ray.get(outcome)]
    good = np.array([number for number, kind in enumerate(kinds) if kind is None], np.int64)
    failed = Counter(kind for kind in kinds if kind is not None)
    return Canvases(tuple(chunk for chunk, _ in started), good), good, failed


def _decode_chunk(uris: list[str], side: int) -> tuple[np.ndarray, list[str | None]]:
    canvases = np.zeros((len(uris), side, side, 3), np.uint8)
    kinds: list[str | None] = []
    for number, uri in enumerate(uris):
        try:
            canvases[number] = decode(read_uri(uri), side).canvas
            kinds.append(None)
        except (StoreError, DecodeError) as error:
            kinds.append(str(error.kind))
    return canvases, kinds
