"""Fetch: what is read of a listed object, and what becomes of one that cannot be; without Ray."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lesioncam.columns import ErrorKind
from lesioncam.scoring.fetch import fetch, pixel_column, pixels_of
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import open_store
from tests.conftest import BODY
from tests.faults import proxy as proxies
from tests.faults.proxy import Fault, Proxy, times


@pytest.mark.parametrize("fault", [proxies.wrong_length, proxies.cut_short, proxies.slow_down])
def test_a_body_that_comes_short_is_read_again(proxy: Proxy, bucket: str, fault: Fault) -> None:
    proxy.fault, _ = times(fault, 1)
    assert fetch(f"s3://{bucket}/a.png", len(BODY)) == BODY


def test_a_body_that_stays_short_is_no_image(proxy: Proxy, bucket: str) -> None:
    proxy.fault = proxies.sometimes(proxies.wrong_length, 1.0, seed=0)
    with pytest.raises(StoreError) as error:
        fetch(f"s3://{bucket}/a.png", len(BODY))
    assert error.value.kind is ErrorKind.UNREACHABLE


@pytest.mark.parametrize("size", [5, 10**6, None])
def test_an_object_that_was_replaced_is_read_as_it_is(
    proxy: Proxy, bucket: str, size: int | None
) -> None:
    assert fetch(f"s3://{bucket}/a.png", size) == BODY


@pytest.mark.parametrize(
    ("size", "kind"), [(5, ErrorKind.UNREACHABLE), (None, ErrorKind.NOT_FOUND)]
)
def test_what_was_listed_and_is_not_there_may_come_back(
    proxy: Proxy, bucket: str, size: int | None, kind: ErrorKind
) -> None:
    with pytest.raises(StoreError) as error:
        fetch(f"s3://{bucket}/gone.png", size)
    assert error.value.kind is kind


@pytest.mark.parametrize("size", [len(BODY), 5, None])
@pytest.mark.parametrize("place", ["s3", "local"])
def test_a_file_too_large_is_not_read(
    proxy: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    size: int | None, place: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("lesioncam.scoring.fetch.MAX_BYTES", len(BODY) - 1)
    (tmp_path / "a.png").write_bytes(BODY)
    with pytest.raises(StoreError, match="the limit is") as error:
        fetch(f"s3://{bucket}/a.png" if place == "s3" else str(tmp_path / "a.png"), size)
    assert error.value.kind is ErrorKind.TOO_LARGE


def test_a_pipe_that_was_listed_is_not_there_for_good(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (entry,) = open_store(str(tmp_path)).entries()
    with pytest.raises(StoreError, match="a device or a pipe") as error:
        fetch(entry.uri, entry.size)
    assert error.value.kind is ErrorKind.NOT_FOUND


def test_pixels_come_back_from_their_column() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3), np.uint8)
    column = pa.chunked_array([pixel_column(pixels[:2]), pixel_column(pixels[2:])])
    assert np.array_equal(pixels_of(column, 7), pixels)
    assert np.array_equal(pixels_of(column.slice(1, 3), 7), pixels[1:4])
    assert pixels_of(column.slice(1, 0), 7).shape == (0, 7, 7, 3)
