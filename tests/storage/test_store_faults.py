"""Reading from a server with faults: short ones are not noticed, lasting ones are reported."""

import pickle
import time
from collections.abc import Callable

import pytest
from pyarrow.fs import FileSystem

from lesioncam.columns import ErrorKind
from lesioncam.storage.lease import Lease, check_worker
from lesioncam.storage.s3_client import _arrow_like, arrow_s3, s3_client
from lesioncam.storage.store import Store, StoreError
from lesioncam.storage.uris import open_store, read_uri
from tests.conftest import BODY
from tests.faults import proxy as proxies
from tests.faults.proxy import Exchange, Fault, Proxy, times

FAULTS = [proxies.slow_down, proxies.denied, proxies.reset, proxies.cut_short, proxies.away]


@pytest.mark.parametrize("fault", FAULTS)
def test_transient_faults_are_retried(proxy: Proxy, bucket: str, fault: Fault) -> None:
    proxy.fault, asked = times(fault, 2)
    assert read_uri(f"s3://{bucket}/a.png") == BODY
    assert len(asked) == 3


CALLS: dict[str, tuple[Callable[[Store], object], object]] = {
    "write": (lambda store: store.write("b", b"1"), None),
    "exists": (lambda store: store.exists("a.png"), True),
    "read quickly": (lambda store: store.read_quickly("a.png"), BODY),
    "swap": (lambda store: store.swap("b", None, b"1"), True),
    "delete": (lambda store: store.delete("a.png"), None),
    "names": (lambda store: store.names(), ["a.png"]),
    "list": (lambda store: len(list(store.entries())), 1),
}


@pytest.mark.parametrize("call", CALLS)
def test_transient_refusals_are_retried(proxy: Proxy, bucket: str, call: str) -> None:
    proxy.fault, asked = times(proxies.denied, 2)
    ask, answer = CALLS[call]
    assert ask(open_store(f"s3://{bucket}")) == answer
    assert len(asked) == 3


def test_a_move_is_retried(proxy: Proxy, bucket: str) -> None:
    proxy.fault, asked = times(proxies.denied, 2)
    assert open_store(f"s3://{bucket}").move("a.png", "b")
    assert asked == ["PUT", "PUT", "PUT", "DELETE"]


@pytest.mark.parametrize("fault", [proxies.denied, proxies.away, proxies.reset])
def test_a_worker_is_persistent_when_it_asks_who_holds_the_output(
    proxy: Proxy, bucket: str, fault: Fault
) -> None:
    output = open_store(f"s3://{bucket}")
    with Lease(output, "run-1"):
        proxy.fault, asked = times(fault, 3)
        check_worker(output, "run-1")
        assert len(asked) == 4


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (proxies.denied, ErrorKind.PERMISSION),
        (proxies.reset, ErrorKind.UNREACHABLE),
        (proxies.cut_short, ErrorKind.UNREACHABLE),
        (proxies.away, ErrorKind.UNREACHABLE),
    ],
)
def test_a_fault_that_lasts_is_reported_after_some_attempts(
    proxy: Proxy, bucket: str, fault: Fault, kind: ErrorKind
) -> None:
    proxy.fault, asked = times(fault, 10**6)
    with pytest.raises(StoreError) as error:
        read_uri(f"s3://{bucket}/a.png")
    assert error.value.kind is kind
    assert 3 < len(asked) <= 24


@pytest.mark.parametrize(
    ("name", "fault", "kind"),
    [
        ("none.png", Exchange.forward, ErrorKind.NOT_FOUND),
        ("a.png", proxies.expired, ErrorKind.PERMISSION),
    ],
)
def test_permanent_errors_are_not_retried(
    proxy: Proxy, bucket: str, name: str, fault: Fault, kind: ErrorKind
) -> None:
    proxy.fault, asked = times(fault, 10**6)
    with pytest.raises(StoreError) as error:
        read_uri(f"s3://{bucket}/{name}")
    assert error.value.kind is kind
    assert len(asked) == 1


def sent(filesystem: FileSystem) -> FileSystem:
    """As another process unpickles it, without this one's caches."""
    data = pickle.dumps(filesystem)
    s3_client.cache_clear()
    _arrow_like.cache_clear()
    there: FileSystem = pickle.loads(data)
    assert there is not filesystem
    return there


def test_boto3_asks_six_times(proxy: Proxy, bucket: str) -> None:
    proxy.fault, asked = times(proxies.slow_down, 10**6)
    with pytest.raises(StoreError, match="SlowDown"):
        read_uri(f"s3://{bucket}/a.png")
    assert len(asked) == 6


def test_arrow_asks_as_often_in_another_process(proxy: Proxy, bucket: str) -> None:
    filesystem = sent(arrow_s3(bucket))  # by itself pyarrow asks three times
    proxy.fault, asked = times(proxies.slow_down, 10**6)
    with pytest.raises(OSError, match="503"):
        filesystem.get_file_info(f"{bucket}/a.png")
    assert len(asked) == 6


def test_arrow_waits_for_a_slow_answer_in_another_process(proxy: Proxy, bucket: str) -> None:
    def late(exchange: Exchange) -> None:
        time.sleep(4)  # the SDK's own timeout is 3 s
        exchange.forward()

    filesystem = sent(arrow_s3(bucket))
    proxy.fault = late
    assert filesystem.get_file_info(f"{bucket}/a.png").size == len(BODY)
