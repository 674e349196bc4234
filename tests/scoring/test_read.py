"""Read: a listed file is read whole, and one that cannot be read has its error kind."""

import os
from pathlib import Path

import pytest

from lesioncam.columns import ErrorKind
from lesioncam.scoring.read import read_canvas, read_listed
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import open_store
from lesioncam.vision.decode import DecodeError
from tests.conftest import BODY
from tests.faults import proxy as proxies
from tests.faults.proxy import Fault, Proxy, times


@pytest.mark.parametrize("fault", [proxies.wrong_length, proxies.cut_short, proxies.slow_down])
def test_a_body_that_comes_short_is_read_again(proxy: Proxy, bucket: str, fault: Fault) -> None:
    proxy.fault, _ = times(fault, 1)
    assert read_listed(f"s3://{bucket}/a.png", len(BODY)) == BODY


def test_a_body_that_stays_short_is_unreachable(proxy: Proxy, bucket: str) -> None:
    proxy.fault = proxies.sometimes(proxies.wrong_length, 1.0, seed=0)
    with pytest.raises(StoreError) as error:
        read_listed(f"s3://{bucket}/a.png", len(BODY))
    assert error.value.kind is ErrorKind.UNREACHABLE


@pytest.mark.parametrize("size", [5, 10**6, None])
def test_an_object_that_was_replaced_is_read_as_it_is(
    proxy: Proxy, bucket: str, size: int | None
) -> None:
    assert read_listed(f"s3://{bucket}/a.png", size) == BODY


@pytest.mark.parametrize(
    ("size", "kind"), [(5, ErrorKind.UNREACHABLE), (None, ErrorKind.NOT_FOUND)]
)
def test_a_listed_object_that_is_gone_may_come_back(
    proxy: Proxy, bucket: str, size: int | None, kind: ErrorKind
) -> None:
    with pytest.raises(StoreError) as error:
        read_listed(f"s3://{bucket}/gone.png", size)
    assert error.value.kind is kind


@pytest.mark.parametrize("size", [len(BODY), 5, None])
@pytest.mark.parametrize("store", ["s3", "local"])
def test_a_file_too_large_is_not_read(
    proxy: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    size: int | None, store: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("lesioncam.scoring.read.MAX_BYTES", len(BODY) - 1)
    (tmp_path / "a.png").write_bytes(BODY)
    with pytest.raises(StoreError, match="the limit is") as error:
        read_listed(f"s3://{bucket}/a.png" if store == "s3" else str(tmp_path / "a.png"), size)
    assert error.value.kind is ErrorKind.TOO_LARGE


def test_a_listed_pipe_is_not_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (entry,) = open_store(str(tmp_path)).entries()
    with pytest.raises(StoreError, match="a device or a pipe") as error:
        read_listed(entry.uri, entry.size)
    assert error.value.kind is ErrorKind.NOT_FOUND


def test_an_image_that_fails_gives_its_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, kind in (("empty.jpg", ErrorKind.EMPTY), ("gone.jpg", ErrorKind.NOT_FOUND)):
        outcome = read_canvas(str(tmp_path / name), None, None, 32)
        assert isinstance(outcome, DecodeError | StoreError)
        assert outcome.kind is kind


def test_an_image_that_was_listed_as_archived_is_not_requested(unreachable: str) -> None:
    outcome = read_canvas(f"{unreachable}/a.jpg", 5, True, 32)
    assert isinstance(outcome, StoreError)
    assert outcome.kind is ErrorKind.ARCHIVED
