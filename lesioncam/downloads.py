"""Downloads: a directory that is completed from a dataset's files, and checked.

`_download.json` in it records the objects that its files came from, and each file's checksum.
Needs neither torch nor Ray.
"""

import hashlib
import json
import logging
import shlex
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import pydantic.dataclasses
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lesioncam.datasets import CONTENTS, ObjectFacts, RemoteFile, Source, find_source
from lesioncam.errors import InputError
from lesioncam.logs import shows_bars
from lesioncam.settings import STRICT, parse
from lesioncam.storage.hidden import is_hidden
from lesioncam.storage.local import LocalStore
from lesioncam.storage.store import StoreError, refusal

MANIFEST = "_download.json"

_THREADS = 8  # files that are transferred at a time
_LOG_INTERVAL_S = 30.0
_BLOCK_BYTES = 4096  # that a file can take on a disk beyond its size

log = logging.getLogger("lesioncam")


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class FileFacts:
    """A file in the directory, and the object that it came from."""

    origin: str
    size: int
    sha256: str


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Manifest:
    """What a directory was downloaded from, and what is in it: the content of `_download.json`.

    Attributes:
        dataset: its name.
        source: the prefix of the objects.
        objects: by name.
        files: those whose content is checked, by path in the directory.
    """

    dataset: str
    source: str
    objects: dict[str, ObjectFacts]
    files: dict[str, FileFacts]


def download(dataset: str, directory: str) -> dict[str, Any]:
    """Download a dataset, or the rest of it, and check what is there already.

    Args:
        dataset: `isic2017` or `sample`.
        directory: a new or empty one, or one that a download of this dataset began.

    Returns:
        `directory`; `source`, the prefix that it came from; how many `files` it has; how many of
        them were `downloaded` now, and their `bytes`; and `next_command`, which uses them.

    Raises:
        InputError: the directory has other files, or changed ones; the source has other objects
            than before, or lacks one; or the disk is too small.
        RunFailedError: the source cannot be reached, or is damaged.
    """
    content = CONTENTS[dataset]
    store = _local_store(directory)
    known = _read_manifest(store, dataset)
    source = Source(find_source(known.source if known else None), known.objects if known else {})
    files = content.files(source)
    there = {file.path for file in files if store.exists(file.path)}
    missing = [file for file in files if file.path not in there]
    _check_space(store, missing)
    present = [file for file in files if file.path in there]
    facts = _check_present(store, present, known.files if known else {})
    for folder in {str(PurePosixPath(file.path).parent) for file in files}:
        store.join(folder).remove_temporary_files()
    _write_manifest(store, Manifest(dataset, source.uri, source.objects, facts))
    facts |= _fetch(store, missing)
    _write_manifest(store, Manifest(dataset, source.uri, source.objects, facts))
    return {
        "directory": directory,
        "source": source.uri,
        "files": len(files),
        "downloaded": len(missing),
        "bytes": sum(file.size for file in missing),
        "next_command": shlex.join(content.next_command(directory)),
    }


def _local_store(directory: str) -> LocalStore:
    if "://" in directory:
        raise InputError(f"{directory}: downloads go to a local directory; name one")
    return LocalStore(directory)


def _read_manifest(store: LocalStore, dataset: str) -> Manifest | None:
    """The manifest of the directory; None if it is new or empty.

    Raises:
        InputError: it has other content.
    """
    folder = Path(store.uri)
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; name another directory") from error
    if MANIFEST not in names:
        if any(not is_hidden(name) for name in names):
            raise InputError(f"{folder} has other files; name a new or empty directory")
        return None
    where = f"{folder}/{MANIFEST}"
    try:
        content = json.loads(store.read(MANIFEST))
    except (StoreError, ValueError) as error:
        raise InputError(f"{where} cannot be read; use another directory") from error
    manifest = parse(Manifest, content, where)
    if manifest.dataset != dataset:
        raise InputError(f"{folder} has the dataset {manifest.dataset}; name another directory")
    return manifest


def _write_manifest(store: LocalStore, manifest: Manifest) -> None:
    store.write(MANIFEST, (json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n").encode())


def _check_space(store: LocalStore, missing: Sequence[RemoteFile]) -> None:
    if not missing:
        return
    needed = sum(file.size + _BLOCK_BYTES for file in missing)
    folder = next(path for path in (Path(store.uri), *Path(store.uri).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    log.info("%s to download; %s are free", _shown(needed), _shown(free))
    if needed > free:
        raise InputError(
            f"{store.uri}: {_shown(needed)} are needed and {_shown(free)} are free; free some "
            f"space, or name a directory on another disk"
        )


def _check_present(
    store: LocalStore, files: Sequence[RemoteFile], known: Mapping[str, FileFacts]
) -> dict[str, FileFacts]:
    """Facts of files that are there.

    Raises:
        InputError: one is not what the source has, or what was recorded.
    """
    if files:
        log.info("checking %s files that are there", f"{len(files):,}")
    facts, changed = {}, []
    for file in files:
        try:
            content = store.read(file.path)
        except StoreError as error:
            raise refusal(f"{store.uri}/{file.path}", error) from error
        now = _facts(file, content)
        if zlib.crc32(content) != file.crc or known.get(file.path, now) != now:
            changed.append(file.path)
        facts[file.path] = now
    if changed:
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        raise InputError(
            f"{store.uri} has files that are not as published: {', '.join(changed[:3])}{more}; "
            f"delete or move them and run the same command again"
        )
    return facts


def _facts(file: RemoteFile, content: bytes) -> FileFacts:
    return FileFacts(file.origin, len(content), hashlib.sha256(content).hexdigest())


def _fetch(store: LocalStore, files: Sequence[RemoteFile]) -> dict[str, FileFacts]:
    """Transfer files; each appears whole or not at all."""
    facts = {}
    threads = ThreadPoolExecutor(_THREADS)
    try:
        with _Progress(sum(file.size for file in files)) as progress:
            waiting = {threads.submit(_fetch_one, store, file): file for file in files}
            for done in as_completed(waiting):
                file = waiting[done]
                facts[file.path] = done.result()
                progress.add(file.size)
    finally:
        threads.shutdown(cancel_futures=True)
    return facts


def _fetch_one(store: LocalStore, file: RemoteFile) -> FileFacts:
    content = file.read()
    store.write(file.path, content)
    return _facts(file, content)


class _Progress:
    """Bytes that have come: a bar on a terminal, log lines elsewhere."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._began = self._logged = time.monotonic()
        self._on_terminal = ExitStack()
        self._bar: tqdm[Any] = tqdm(disable=True)

    def __enter__(self) -> "_Progress":
        if shows_bars():
            self._bar = tqdm(total=self._total, desc="downloading", unit="B", unit_scale=True)
            self._on_terminal.enter_context(logging_redirect_tqdm([log]))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.disable and self._total:
            self._log()
        self._on_terminal.close()
        self._bar.close()

    def add(self, count: int) -> None:
        """Count bytes."""
        self._done += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._logged >= _LOG_INTERVAL_S:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        rate = self._done / max(self._logged - self._began, 1e-3)
        log.info("downloaded %s of %s, %s/s", _shown(self._done), _shown(self._total), _shown(rate))


def _shown(count: float) -> str:
    """Bytes as people read them, as the bar shows them."""
    return tqdm.format_sizeof(count, "B")
