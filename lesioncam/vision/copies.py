"""Copies: images that show the same picture, found by their thumbnails.

A copy on both sides of a split makes the held-out figures too good; ISIC-2017 has some pictures
twice under two ids, also across its training and validation sets. Knows nothing about files.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SIZE = 16  # rows and columns of a thumbnail
_MAX_RMS = 6.0  # gray levels: more than another encoding, less than a new shot
_PAIRS = 2**22  # compared at once: some 300 MB where all are copies


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8, S at least `SIZE`, to (SIZE, SIZE, 3) uint8: the mean of each cell."""
    edges = np.linspace(0, image.shape[0], SIZE + 1).round().astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.uint32), edges, axis=0), edges, axis=1)
    heights = np.diff(np.append(edges, image.shape[0]))
    cells = (heights[:, None] * heights[None, :])[..., None]
    return np.asarray((sums / cells).round(), np.uint8)


def pairs_of_copies(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (i, j) where `first[i]` and `second[j]` show the same picture.

    Compares all with all, in blocks: some 0.2 s for 2,000 images, 10 minutes for 100,000.

    Args:
        first: (n, SIZE, SIZE, 3) uint8.
        second: (m, SIZE, SIZE, 3) uint8.
    """
    for start, copied in _compared(first, second):
        for i, j in np.argwhere(copied):
            yield start + int(i), int(j)


def groups_of_copies(thumbnails: np.ndarray) -> np.ndarray:
    """(n,) int64: for each image the smallest index among its copies, its own if it has none.

    Copies of copies are in one group. Compares all with all, as `pairs_of_copies` does.

    Args:
        thumbnails: (n, SIZE, SIZE, 3) uint8.
    """
    from scipy.sparse import coo_array  # noqa: PLC0415  workers that make thumbnails need no scipy
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    groups = np.arange(len(thumbnails))
    for start, copied in _compared(thumbnails, thumbnails):
        # One block's pairs at a time, and the groups so far as edges: memory grows with n, not n^2.
        rows, columns = np.nonzero(copied)
        ends = np.append(rows + start, np.arange(len(groups))), np.append(columns, groups)
        graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(len(groups), len(groups)))
        _, component = connected_components(graph, directed=False)
        _, smallest = np.unique(component, return_index=True)
        groups = smallest[component]
    return groups


def join_groups(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) int64: groups of what is connected by either of two groupings, as the smallest index.

    Args:
        first: (n,) int64, as `groups_of_copies` gives them.
        second: (n,) int64, likewise.
    """
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    indices = np.tile(np.arange(len(first)), 2)
    ends = indices, np.concatenate([first, second])
    graph = coo_array((np.ones(len(indices), bool), ends), shape=(len(first), len(first)))
    _, component = connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    return np.asarray(smallest[component], np.int64)


def groups_by_name(names: Sequence[str]) -> np.ndarray:
    """(n,) int64: for each item the index of the first of its name; its own if that is empty."""
    firsts: dict[str, int] = {}
    return np.array(
        [firsts.setdefault(name, row) if name else row for row, name in enumerate(names)], np.int64
    )


def _compared(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Which are copies: blocks (b, m) bool, and where in `first` each block starts."""
    flat = second.reshape(len(second), SIZE * SIZE * 3).astype(np.float32)
    squares = (flat**2).sum(axis=1)
    limit = _MAX_RMS**2 * flat.shape[1]
    rows = max(1, _PAIRS // max(1, len(second)))
    for start in range(0, len(first), rows):
        block = first[start : start + rows].reshape(-1, flat.shape[1]).astype(np.float32)
        distances = (block**2).sum(axis=1)[:, None] + squares - 2 * (block @ flat.T)
        yield start, distances <= limit
