"""Reading through a server that fails: what passes is read all the same, what lasts is told."""

from collections.abc import Iterator

import boto3
import pytest
from botocore.retries.standard import ExponentialBackoff

from lesioncam.schema import ErrorKind
from lesioncam.storage.store import StoreError, read_uri, s3_client
from tests.faults import proxy as proxies
from tests.faults.proxy import Exchange, Misdeed, Proxy

BODY = bytes(range(256)) * 400


@pytest.fixture
def proxy(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    boto3.client("s3").put_object(Bucket=bucket, Key="a.png", Body=BODY)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr("lesioncam.storage.store._PAUSES", (0, 0, 0, 0))
    with Proxy(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3_client.cache_clear()
        yield server
    s3_client.cache_clear()


def times(misdeed: Misdeed, count: int) -> tuple[Misdeed, list[str]]:
    """Do it so often, then no more; and what was asked."""
    asked: list[str] = []

    def act(exchange: Exchange) -> None:
        asked.append(exchange.command)
        if len(asked) <= count:
            misdeed(exchange)
        else:
            exchange.pass_on()

    return act, asked


FAULTS = [proxies.slow_down, proxies.denied, proxies.reset, proxies.cut_short, proxies.away]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_not_seen(proxy: Proxy, bucket: str, fault: Misdeed) -> None:
    proxy.misdeed, asked = times(fault, 2)
    assert read_uri(f"s3://{bucket}/a.png") == BODY
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (proxies.slow_down, ErrorKind.UNREACHABLE),
        (proxies.denied, ErrorKind.PERMISSION),
        (proxies.reset, ErrorKind.UNREACHABLE),
        (proxies.cut_short, ErrorKind.UNREACHABLE),
        (proxies.away, ErrorKind.UNREACHABLE),
    ],
)
def test_a_fault_that_lasts_is_told_after_some_attempts(
    proxy: Proxy, bucket: str, fault: Misdeed, kind: ErrorKind
) -> None:
    proxy.misdeed, asked = times(fault, 10**6)
    with pytest.raises(StoreError) as error:
        read_uri(f"s3://{bucket}/a.png")
    assert error.value.kind is kind
    assert 3 < len(asked) <= 24


@pytest.mark.parametrize(
    ("name", "fault", "kind"),
    [
        ("none.png", Exchange.pass_on, ErrorKind.NOT_FOUND),
        ("a.png", proxies.expired, ErrorKind.PERMISSION),
    ],
)
def test_what_will_not_pass_is_asked_for_once(
    proxy: Proxy, bucket: str, name: str, fault: Misdeed, kind: ErrorKind
) -> None:
    proxy.misdeed, asked = times(fault, 10**6)
    with pytest.raises(StoreError) as error:
        read_uri(f"s3://{bucket}/{name}")
    assert error.value.kind is kind
    assert len(asked) == 1
