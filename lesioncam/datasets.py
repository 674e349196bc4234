"""Datasets: what `download` can bring, and where each file of it is in the public zips.

Single files are taken out of the zips: no zip is stored, and what nothing here reads, such as
superpixel masks, is not transferred.
"""

import csv
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple
from zipfile import ZipInfo

import pydantic.dataclasses

from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.settings import STRICT
from lesioncam.storage.hidden import is_hidden
from lesioncam.storage.mask_names import mask_suffix, masked_image_id
from lesioncam.storage.remote_zip import RemoteZip, ZipError
from lesioncam.storage.s3 import read_public_range, stat_public
from lesioncam.storage.store import Entry, StoreError, refusal

# The challenge's page named the first for years; the newest version of it names the second.
SOURCES = ("s3://isic-challenge-data/2017", "s3://isic-archive/challenges/2017")
SPLITS = {"train": "Training", "val": "Validation", "test": "Test_v2"}
SAMPLE_PER_CLASS = 8

_LABEL_COLUMNS = ["image_id", "melanoma", "seborrheic_keratosis"]
_CLASSES = {(1.0, 0.0): "melanoma", (0.0, 1.0): "seborrheic_keratosis", (0.0, 0.0): "nevus"}
_PAGE = "https://challenge.isic-archive.com/data"
_NOT_AS_PUBLISHED = f"it is not as {_PAGE} describes it"

log = logging.getLogger("lesioncam")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        path: where it goes, relative to the directory.
        origin: the object that it is in, or is made from.
        size: bytes.
        crc: CRC-32 of its content.
        read: returns its content.
    """

    path: str
    origin: str
    size: int
    crc: int
    read: Callable[[], bytes]


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ObjectFacts:
    """An object of the source, as it was when the download began."""

    size: int | None
    etag: str | None


class Source:
    """The prefix of the challenge's files.

    Args:
        uri: of the prefix.
        known: the objects that an earlier call saw, by name; they must be the same now.

    Attributes:
        objects: those that were used, by name.
    """

    def __init__(self, uri: str, known: Mapping[str, ObjectFacts]):
        self.uri = uri
        self.objects: dict[str, ObjectFacts] = {}
        self._known = known

    def content(self, name: str) -> bytes:
        """The content of a small object."""
        entry = self._entry(name)
        with _reported(entry.uri):
            return read_public_range(entry, 0, entry.size or 0)

    def from_zip(self, name: str, path_of: Callable[[str], str | None]) -> list[RemoteFile]:
        """The wanted files of a zip.

        Args:
            name: of the zip.
            path_of: where a file of this name goes; None if it is not wanted.

        Raises:
            InputError: there is none, or two of them go to one path.
        """
        entry = self._entry(name)
        with _reported(entry.uri):
            remote = RemoteZip(entry)
            members = remote.members()
        files: dict[str, RemoteFile] = {}
        for member in members:
            *folders, file = PurePosixPath(member.filename).parts
            path = None if any(map(is_hidden, [*folders, file])) else path_of(file)
            if path is None:
                continue
            if path in files:
                raise InputError(f"{entry.uri} has two files {file}; {_NOT_AS_PUBLISHED}")
            read = partial(_read_member, entry.uri, remote, member)
            files[path] = RemoteFile(path, name, member.file_size, member.CRC, read)
        if not files:
            raise InputError(f"{entry.uri} has none of the files in question; {_NOT_AS_PUBLISHED}")
        log.info("%s: %s of its %s files are used", name, f"{len(files):,}", f"{len(members):,}")
        return list(files.values())

    def _entry(self, name: str) -> Entry:
        """An object, if it is the one that an earlier call saw."""
        uri = f"{self.uri}/{name}"
        with _reported(uri):
            entry = stat_public(uri)
        now = ObjectFacts(entry.size, entry.etag)
        before = self._known.get(name, now)
        if now != before:
            raise InputError(
                f"{uri} has changed since the download began: it had {before.size} bytes and etag "
                f"{before.etag}, and has {now.size} and {now.etag}; use another directory"
            )
        self.objects[name] = now
        return entry


def _read_member(uri: str, remote: RemoteZip, member: ZipInfo) -> bytes:
    with _reported(uri):
        return remote.read(member)


def _isic2017(source: Source) -> list[RemoteFile]:
    """Images, labels, masks and metadata of the three splits."""
    files = []
    for split, official in SPLITS.items():
        table = f"ISIC-2017_{official}_Part3_GroundTruth.csv"
        content = source.content(table)
        labels = _read_labels(content, f"{source.uri}/{table}")
        data = source.from_zip(f"ISIC-2017_{official}_Data.zip", partial(_data_path, split))
        masks = source.from_zip(f"ISIC-2017_{official}_Part1_GroundTruth.zip", _mask_path)
        images = {_stem(file.path) for file in data if file.path.startswith(f"{split}/")}
        _compare(images, labels.keys(), f"labels of {split}")
        _compare(images, {masked_image_id(file.path) for file in masks}, f"masks of {split}")
        files += [_made(content, table, f"{split}.csv"), *data, *masks]
    return files


def _data_path(split: str, file: str) -> str | None:
    if file.lower().endswith(".jpg") and mask_suffix(file) is None:
        return f"{split}/{file}"
    return f"{split}-metadata.csv" if file.endswith("_metadata.csv") else None


def _mask_path(file: str) -> str | None:
    return None if masked_image_id(file) is None else f"masks/{file}"


def _train(directory: str) -> list[str]:
    return [
        *("lesioncam", "train", "--images", f"{directory}/train"),
        *("--labels", f"{directory}/train.csv", "--masks", f"{directory}/masks"),
        *("--weights", "VGG16_Weights.IMAGENET1K_FEATURES", "--bundle", "model"),
    ]


def _sample(source: Source) -> list[RemoteFile]:
    """The first validation images of each class, by their ids, and their labels."""
    table = f"ISIC-2017_{SPLITS['val']}_Part3_GroundTruth.csv"
    labels = _read_labels(source.content(table), f"{source.uri}/{table}")
    chosen: set[str] = set()
    for name in _CLASSES.values():
        chosen.update(sorted(one for one in labels if labels[one] == name)[:SAMPLE_PER_CLASS])
    images = source.from_zip(
        f"ISIC-2017_{SPLITS['val']}_Data.zip",
        lambda file: f"images/{file}" if _stem(file) in chosen else None,
    )
    _compare({_stem(file.path) for file in images}, chosen, "labels of the sample")
    marks = {name: f"{float(one)},{float(other)}" for (one, other), name in _CLASSES.items()}
    rows = [",".join(_LABEL_COLUMNS), *(f"{one},{marks[labels[one]]}" for one in sorted(chosen))]
    content = "".join(f"{row}\n" for row in rows).encode()
    return [_made(content, table, "labels.csv"), *images]


def _score(directory: str) -> list[str]:
    images = ("--images", f"{directory}/images")
    return ["lesioncam", "score", *images, "--bundle", "model", "--output", "scores"]


class Dataset(NamedTuple):
    """A dataset.

    Attributes:
        files: lists its files, without transferring images.
        next_command: the command that uses it, given its directory.
    """

    files: Callable[[Source], list[RemoteFile]]
    next_command: Callable[[str], list[str]]


CONTENTS = {"isic2017": Dataset(_isic2017, _train), "sample": Dataset(_sample, _score)}


def _read_labels(content: bytes, uri: str) -> dict[str, str]:
    """The class of each image id.

    Raises:
        InputError: it is no such table.
    """
    try:
        header, *rows = csv.reader(content.decode("utf-8-sig").splitlines())
        classes = {
            image_id: _CLASSES[float(melanoma), float(keratosis)]
            for image_id, melanoma, keratosis in rows
        }
    except (ValueError, KeyError) as error:  # the first: UnicodeDecodeError, too
        raise InputError(f"{uri} cannot be read as labels; {_NOT_AS_PUBLISHED}") from error
    if header != _LABEL_COLUMNS:
        raise InputError(f"{uri} has other columns than expected; {_NOT_AS_PUBLISHED}")
    return classes


def _made(content: bytes, origin: str, path: str) -> RemoteFile:
    return RemoteFile(path, origin, len(content), zlib.crc32(content), lambda: content)


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _compare(images: Set[str], others: Set[str | None], what: str) -> None:
    """Warn if images and labels, or masks, do not belong together."""
    without, extra = len(images - others), len(others - images)
    if without or extra:
        log.warning("%s: %d images have none, and %d have no image", what, without, extra)


def find_source(known: str | None) -> str:
    """The prefix that an earlier call found, or the first of `SOURCES` that has the data.

    Raises:
        InputError: none has it, or all refuse.
        RunFailedError: one cannot be reached.
    """
    sources = SOURCES if known is None else (known,)
    failures = []
    for uri in sources:
        try:
            stat_public(f"{uri}/ISIC-2017_{SPLITS['val']}_Part3_GroundTruth.csv")
        except StoreError as error:
            if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.PERMISSION):
                raise _unreadable(uri, error) from error
            failures.append(error)
        else:
            return uri
    raise _unreadable(" or ".join(sources), failures[-1]) from failures[-1]


@contextmanager
def _reported(uri: str) -> Iterator[None]:
    """Raise what is wrong with an object as an error of one line."""
    try:
        yield
    except StoreError as error:
        raise _unreadable(uri, error) from error
    except ZipError as error:
        raise RunFailedError(
            f"{uri} is damaged: {error}; run the same command again, and if it says so again, the "
            f"source itself is damaged"
        ) from error


def _unreadable(uri: str, failure: StoreError) -> LesioncamError:
    error = refusal(f"cannot read {uri}", failure)
    if not isinstance(error, InputError):
        return error
    if any(name in os.environ for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        return InputError(f"{error}; unset AWS_ENDPOINT_URL to reach the public bucket")
    return InputError(f"{error}; {_PAGE} says where the files are now")
