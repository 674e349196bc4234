"""Canvases: the decoded images, kept in Ray's object store between epochs.

Ray keeps them once a node, shares them between its workers without copying, writes them to disk
where memory is short, and decodes a chunk again where a node was lost.
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
CHUNK = 16  # images decoded, kept and moved together: 5 MB at a canvas of 320


@dataclass(frozen=True)
class Chunk:
    """Images of one task, as the object store keeps them.

    Attributes:
        pixels: (c, S, S, 3) uint8, c at most CHUNK; black where an image could not be decoded.
        good: (c,) bool, whether it could.
    """

    pixels: np.ndarray
    good: np.ndarray


@dataclass(frozen=True)
class Canvases:
    """References to decoded images, by number.

    Attributes:
        chunks: of each `Chunk` in the object store.
        places: (n,) int64: image i is at `places[i] % CHUNK` in chunk `places[i] // CHUNK`.
    """

    chunks: tuple[ray.ObjectRef, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """(m, S, S, 3): copies of these images, in this order.

        Raises:
            RunFailedError: a node was lost, and one of them can't be fetched from its source any more.
        """
        places = self.places[numbers]
        images: dict[int, np.ndarray] = {}
        for number in np.unique(places // CHUNK):
            chunk: Chunk = ray.get(self.chunks[number])
            for place in places[places // CHUNK == number]:
                if not chunk.good[place % CHUNK]:
                    raise RunFailedError(
                        "an image that a lost node had cannot be read once more; run the same "
                        "command again"
                    )
                images[place] = chunk.pixels[place % CHUNK]
        return np.stack([images[place] for place in places])

    def take(self, numbers: np.ndarray) -> "Canvases":
        """These images, in this order."""
        return Canvases(self.chunks, self.places[numbers])

    def join(self, others: "Canvases") -> "Canvases":
        """These images, and after them the others."""
        places = np.concatenate([self.places, others.places + CHUNK * len(self.chunks)])
        return Canvases(self.chunks + others.chunks, places)


@dataclass(frozen=True)
class Decoded:
    """What became of a list of images; m of them could be decoded.

    Attributes:
        canvases: of those m.
        good: (m,) int64, their numbers in the list.
        failed: how many others failed, by error kind.
        thumbnails: (m, 16, 16, 3) uint8, to find copies by.
        guesses: (m, 32, 32) bool, where `estimate_lesion_masks` sees the lesion.
    """

    canvases: Canvases
    good: np.ndarray
    failed: Counter[str]
    thumbnails: np.ndarray
    guesses: np.ndarray


def decode_canvases(uris: Sequence[str], side: int) -> Decoded:
    """Fetch and decode images on the cluster, to canvases of `side` pixels."""
    task = ray.remote(num_cpus=1, num_returns=2, max_retries=_RETRIES)(_decode_chunk)
    started = [
        task.remote(list(uris[start : start + CHUNK]), side) for start in range(0, len(uris), CHUNK)
    ]
    outcomes = [outcome for _, chunk in started for outcome in ray.get(chunk)]
    good = np.array([n for n, outcome in enumerate(outcomes) if outcome.kind is None], np.int64)
    return Decoded(
        Canvases(tuple(chunk for chunk, _ in started), good),
        good,
        Counter(outcome.kind for outcome in outcomes if outcome.kind is not None),
        np.array([outcomes[number].thumbnail for number in good]),
        np.array([outcomes[number].guess for number in good]),
    )


@dataclass(frozen=True)
class _Outcome:
    """One image: its error kind, or what is known of it beside its pixels."""

    kind: str | None
    thumbnail: np.ndarray | None = None
    guess: np.ndarray | None = None


def _decode_chunk(uris: list[str], side: int) -> tuple[Chunk, list[_Outcome]]:
    canvases = np.zeros((len(uris), side, side, 3), np.uint8)
    kinds: list[str | None] = []
    for number, uri in enumerate(uris):
        try:
            canvases[number] = _DECODER.decode(read_uri(uri), side).canvas
            kinds.append(None)
        except (StoreError, DecodeError) as error:
            kinds.append(str(error.kind))
    guesses = estimate_lesion_masks(to_channels_first(torch.from_numpy(canvases))).numpy()
    return Chunk(canvases, np.array([kind is None for kind in kinds])), [
        _Outcome(None, thumbnail(canvas), guess) if kind is None else _Outcome(kind)
        for kind, canvas, guess in zip(kinds, canvases, guesses, strict=True)
    ]
