"""Fixtures and words for what has a local and an s3:// form: one test runs against both."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from botocore.retries.standard import ExponentialBackoff
from botocore.stub import Stubber

from lesioncam.errors import LesioncamError
from lesioncam.storage.store import s3_client

SECRET = "wJalrXUtnFEMI-a-secret"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, as a local directory and as a prefix of a bucket."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/top/place"
    return str(tmp_path / "top" / "place")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place on an S3 server that refuses connections; retries do not wait."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
        s3_client.cache_clear()
        yield "s3://some-bucket/place"
    s3_client.cache_clear()


@contextmanager
def refused(
    *parts: str, kind: type[LesioncamError] = LesioncamError, without: tuple[str, ...] = ()
) -> Iterator[None]:
    """Expect an error told in one line that holds every part and nothing of `without`."""
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
