"""Listing: which images there are, and the manifest that records them.

Knows nothing about what was already scored.
"""

import io
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa

from lesioncam.errors import InputError
from lesioncam.schema import MANIFEST_SCHEMA
from lesioncam.storage.hidden import is_hidden
from lesioncam.storage.local import local_path, local_uri
from lesioncam.storage.mask_names import mask_suffix
from lesioncam.storage.parallel import merge_parallel
from lesioncam.storage.store import Entry, Store, stat_or_unknown
from lesioncam.storage.uri_list import LIST_ENDINGS, is_uri_list, read_uri_list
from lesioncam.storage.uris import open_store, stat_uri
from lesioncam.vision.formats import image_endings

LISTED_TWICE = "listed twice"
HIDDEN, HIDDEN_FOLDER = "hidden", "hidden folder"
# Other endings are not reported: what follows a dot may be part of a patient's name.
_REPORTED_ENDINGS = frozenset(
    {".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jxl", ".jxr", ".dcm", ".dicom",
     ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg", ".pdf", ".mp4", ".mov", ".csv", ".json",
     ".txt", ".xml", ".md", ".html", ".xlsx", ".parquet", ".zip", ".db", ".ini"}
)  # fmt: skip
MANIFEST_ROWS = 100_000  # rows a manifest file: some 10 MB
_STAT_THREADS = 32
_LIST_THREADS = 16


class Listing:
    """The images a flag names: a directory or prefix, or a list of `uri`s (`LIST_ENDINGS`).

    Iterate once; `skipped` is complete after that.

    Attributes:
        source: what the user gave.
        skipped: how many files were skipped for which reason: an ending that is no image's,
            `mask (_segmentation)` or another of a mask's suffixes, `hidden`, or `listed twice`;
            and how many folders, `hidden folder`.

    Args:
        source: what the user gave.
        flag: its flag, for messages.
        all_files: take every file below a directory or prefix for an image.
        keep_columns: columns of a list that its entries keep.
    """

    def __init__(
        self,
        source: str,
        flag: str = "--images",
        *,
        all_files: bool = False,
        keep_columns: Sequence[str] = (),
    ):
        self.source = source
        self.skipped: Counter[str] = Counter()
        self._flag = flag
        self._all_files = all_files
        self._keep_columns = keep_columns
        self._counting = threading.Lock()

    def __iter__(self) -> Iterator[Entry]:
        """Yield the images.

        Raises:
            InputError: there is no such directory or list, or no image in it.
        """
        if is_uri_list(self.source):
            return self._refuse_none(self._once(self._listed()))
        return self._refuse_none(self._images(self._store().entries(self._enter)))

    def unordered(self) -> Iterator[Entry]:
        """Yield the images as fast as they can be listed, in any order and repeated ones too.

        Raises:
            InputError: there is no such directory or list, or no image in it.
        """
        if is_uri_list(self.source):
            return self._refuse_none(self._listed())
        listings = map(self._images, self._store().parallel_listings(self._enter))
        return self._refuse_none(merge_parallel([*listings], _LIST_THREADS))

    def _store(self) -> Store:
        if "://" not in self.source and not Path(self.source).is_dir():
            raise InputError(
                f"{self._flag}: no such directory: {self.source}; give a directory, an s3:// "
                f"prefix, or a list of images ({', '.join(LIST_ENDINGS)})"
            )
        if self._keep_columns:
            raise InputError(
                f"--keep-columns: {self.source} is a directory or prefix and has no columns; give "
                f"a list as {self._flag}, or leave it out"
            )
        return open_store(self.source)

    def _enter(self, folder: str) -> bool:
        """Whether to list a folder of this name."""
        if self._all_files or not is_hidden(folder):
            return True
        self._skip(HIDDEN_FOLDER)
        return False

    def _images(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            reason = None if self._all_files else reason_to_skip(entry.uri)
            if reason is None:
                yield entry
            else:
                self._skip(reason)

    def _listed(self) -> Iterator[Entry]:
        with ThreadPoolExecutor(_STAT_THREADS) as threads:
            for rows in read_uri_list(self.source, self._flag, self._keep_columns):
                yield from threads.map(lambda row: replace(stat_listed(row[0]), kept=row[1]), rows)

    def _once(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        seen: set[str] = set()
        for entry in entries:
            if entry.uri in seen:
                self._skip(LISTED_TWICE)
            else:
                seen.add(entry.uri)
                yield entry

    def _refuse_none(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        found = False
        for entry in entries:
            found = True
            yield entry
        if not found:
            skipped = f" ({describe_skipped(self.skipped)})" if self.skipped else ""
            raise InputError(
                f"{self._flag}: no images in {self.source}{skipped}; expected names ending in "
                f"{' '.join(sorted(image_endings()))}"
            )

    def _skip(self, reason: str) -> None:
        with self._counting:
            self.skipped[reason] += 1


def reason_to_skip(uri: str) -> str | None:
    """Why a listing skips a file of this name; None for an image."""
    name = uri.rpartition("/")[2]
    if is_hidden(name):
        return HIDDEN
    ending = PurePosixPath(name.lower()).suffix
    if ending not in image_endings():
        return ending if ending in _REPORTED_ENDINGS else "other"
    suffix = mask_suffix(name)
    return None if suffix is None else f"mask ({suffix})"


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """What was skipped, in a line: `skipped 3 files: 2 .heic, 1 mask (_segmentation)`."""
    files = {reason: count for reason, count in skipped.items() if reason != HIDDEN_FOLDER}
    parts = []
    if files:
        total = sum(files.values())
        reasons = ", ".join(
            f"{count:,} {reason.replace('mask (', 'masks (') if count > 1 else reason}"
            for reason, count in sorted(files.items(), key=lambda item: (-item[1], item[0]))
        )
        parts.append(f"{total:,} {'file' if total == 1 else 'files'}: {reasons}")
    if folders := skipped.get(HIDDEN_FOLDER, 0):
        parts.append(f"{folders:,} hidden {'folder' if folders == 1 else 'folders'}")
    if ".heic" in files:
        parts.append("pip install 'lesioncam[heif]' reads .heic")
    if ".dcm" in files:
        parts.append("pip install 'lesioncam[dicom]' reads .dcm")
    return f"skipped {'; '.join(parts)}"


def image_id(uri: str) -> str:
    """The file's stem, which joins to labels: `s3://b/x/ISIC_0000000.jpg` -> `ISIC_0000000`.

    Digits alone are no ending: a DICOM file may be named by its UID, `1.2.840.10008.17`.
    """
    name = uri.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return stem if dot and not ending.isdecimal() else name


def write_manifest(entries: Iterable[Entry], store: Store) -> int:
    """Write a listing as manifest files of at most `MANIFEST_ROWS` rows; returns how many rows."""
    remaining = iter(entries)
    rows = 0
    while chunk := list(islice(remaining, MANIFEST_ROWS)):
        values = (
            (row, e.uri, image_id(e.uri), e.size, e.etag, e.last_modified, e.archived, e.kept)
            for row, e in enumerate(chunk, rows)
        )
        columns = [list(column) for column in zip(*values, strict=True)]
        table = pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, MANIFEST_SCHEMA, strict=True)],
            schema=MANIFEST_SCHEMA,
        )
        write_table(store, f"{rows // MANIFEST_ROWS:06d}.arrow", table)
        rows += len(chunk)
    return rows


def write_table(store: Store, name: str, table: pa.Table) -> None:
    """Write one Arrow file, whole or not at all.

    Not Parquet: whoever reads all Parquet files below an output would take its rows for scores.
    """
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as file:
        file.write_table(table)
    store.write(name, sink.getvalue())


def read_tables(store: Store) -> Iterator[pa.Table]:
    """Read all the files that `write_table` wrote to a store, one after another."""
    return (read_table(store, name) for name in store.names())


def read_table(store: Store, name: str) -> pa.Table:
    """Read an Arrow file that `write_table` wrote."""
    return pa.ipc.open_file(store.read(name)).read_all()


def stat_listed(uri: str) -> Entry:
    """The entry of a file that a list names by its path or URI."""
    return stat_or_unknown(stat_uri, _absolute(uri))


def _absolute(uri: str) -> str:
    if uri.startswith("s3://"):
        return uri
    path = os.path.abspath(local_path(uri))  # noqa: PTH100  takes `..` out, follows no link
    return local_uri(path)
