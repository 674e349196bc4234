"""Fixtures for what can be local and on s3://: one test runs against both."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from lesioncam.errors import LesioncamError
from lesioncam.storage.s3_client import s3_client
from lesioncam.storage.uris import open_store


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty location: a local directory, and a prefix of a bucket."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/top/below"
    return str(tmp_path / "top" / "below")


@pytest.fixture
def no_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with images, one of its folders not to be listed; root may list any."""
    store = open_store(str(tmp_path))
    store.write("open/a.jpg", b"1")
    store.write("shut/b.jpg", b"1")
    real = os.scandir

    def scandir(folder: str) -> Any:
        if str(folder).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return store.uri


@contextmanager
def refused(
    *parts: str, kind: type[LesioncamError] = LesioncamError, without: tuple[str, ...] = ()
) -> Iterator[None]:
    """Expect an error of one line that has every part and nothing of `without`."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert len((message + "|").splitlines()) == 1, message
    assert [part for part in parts if part not in message] == [], message
    assert [part for part in without if part in message] == [], message


@contextmanager
def answering(operation: str, code: str, message: str = "", status: int = 403) -> Iterator[None]:
    """The S3 server answers the next call of `operation` with this error."""
    with Stubber(s3_client()) as stub:
        stub.add_client_error(operation, code, message, http_status_code=status)
        yield
