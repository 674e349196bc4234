"""Fixtures that many tests share: a tiny bundle, an in-process S3 server, a local Ray."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import torch
from botocore.retries.standard import ExponentialBackoff
from moto.server import ThreadedMotoServer
from xdist.scheduler import LoadFileScheduling

from lesioncam.cluster import connected
from lesioncam.settings import BACKBONES, CropRule, ModelSettings, Quantization
from lesioncam.storage.bundle import Bundle, load_bundle, save_bundle
from lesioncam.storage.s3_client import s3_client
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network
from tests.faults.proxy import Proxy
from tests.faults.servers import KEY

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
SECRET = "wJalrXUtnFEMI-a-secret"
BODY = bytes(range(256)) * 400  # of the object in the bucket that `proxy` stands before
SHARED = Path(__file__).parents[2] / "shared"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared, real images that are not part of the project"
)


class RayTogether(LoadFileScheduling):  # type: ignore[misc]
    """Two test processes share one Ray: quick tests of files that use it go to one of them.

    Every other file, and every file of slow tests, is a unit of its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        is_quick = self.config.option.markexpr != "slow"
        return "ray" if is_quick and uses_ray(self.config.rootpath / file) else file


@cache
def uses_ray(file: Path) -> bool:
    """Whether a file's tests use the fixture `local_ray`."""
    return "local_ray" in file.read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayTogether:
    """Called by xdist in place of `--dist`."""
    return RayTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on several machines, then those on Ray: they take longest."""
    items.sort(key=lambda item: (item.path.parent.name != "cluster", not uses_ray(item.path)))


@pytest.fixture(scope="session")
def model_settings() -> ModelSettings:
    side = BACKBONES["tiny"].input_size
    return ModelSettings(
        CLASSES, "tiny", side, 2 * side, IMAGENET_MEAN, IMAGENET_STD, 0.5, CropRule()
    )


@pytest.fixture(scope="session")
def bundle_uri(model_settings: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny bundle with random weights."""
    uri = str(tmp_path_factory.mktemp("bundle") / "tiny")
    torch.manual_seed(0)
    stage1, stage2 = (build_network(model_settings).state_dict() for _ in range(2))
    save_bundle(Bundle(model_settings, stage1, stage2), uri, "# A tiny bundle for tests\n")
    return uri


@pytest.fixture(scope="session")
def quantized_uri(bundle_uri: str) -> str:
    """The tiny bundle with what int8 needs."""
    uri = f"{bundle_uri}-int8"
    ranges = Quantization((4.0, 4.0, 4.0), (5.0, 5.0, 5.0))
    save_bundle(replace(load_bundle(bundle_uri), quantization=ranges), uri, "# Likewise\n")
    return uri


@pytest.fixture(scope="session")
def local_ray(s3_server: str) -> Iterator[None]:
    """A real Ray on two CPUs, shared by the tests; its workers find the S3 server."""
    with connected():
        yield
    assert not ray.is_initialized()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` runs in this process, however many images and whether it has a Ray or not."""
    monkeypatch.setattr("lesioncam.scoring.pipeline.is_small", lambda *_: True)


@pytest.fixture
def threads_restored() -> Iterator[None]:
    """For tests that run an actor in their own process: it says how many threads torch takes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An in-process S3 server; every process of the test run finds it through the environment."""
    server = ThreadedMotoServer(port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEY, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        s3_client.cache_clear()
        yield url
    s3_client.cache_clear()
    server.stop()


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """A fresh, empty bucket's name."""
    name = f"bucket-{abs(hash(request.node.nodeid)) % 10**10}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the S3 server; clients retry its faults at once; `a.png` is `BODY`."""
    boto3.client("s3").put_object(Bucket=bucket, Key="a.png", Body=BODY)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr("lesioncam.storage.s3.RETRY_PAUSES_S", (0, 0, 0, 0))
    monkeypatch.setattr("lesioncam.storage.s3_client.RETRY_PAUSES_S", (0, 0, 0, 0))
    with Proxy(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        s3_client.cache_clear()
        yield server
    s3_client.cache_clear()


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
