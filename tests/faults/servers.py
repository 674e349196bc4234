"""Real S3 servers, started for a while."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 4
_PATIENCE = 60  # seconds
KEY = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def moto() -> Iterator[str]:
    """An S3 server in this process's memory."""
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def weed() -> str | None:
    """SeaweedFS's program, if it is installed."""
    return shutil.which("weed", path=Path(sys.executable).parent)


@contextmanager
def seaweedfs() -> Iterator[str]:
    """A SeaweedFS server with its S3 gateway, its data in a temporary directory.

    Its ports are free when they are chosen, but may be taken before it has them; then it is started
    anew.
    """
    for _ in range(_ATTEMPTS):
        with TemporaryDirectory(prefix="weed-") as folder:
            url, server = _start_weed(Path(folder))
            try:
                if _answers_in_time(url, server):
                    yield url
                    return
            finally:
                server.kill()
                server.wait()
    raise RuntimeError(f"SeaweedFS did not answer, started {_ATTEMPTS} times")


def _start_weed(folder: Path) -> "tuple[str, subprocess.Popen[bytes]]":
    program = weed()
    assert program is not None
    identity = {
        "name": "test",
        "credentials": [
            {"accessKey": KEY["AWS_ACCESS_KEY_ID"], "secretKey": KEY["AWS_SECRET_ACCESS_KEY"]}
        ],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    flags = [f"-{name}.port={port}" for name, port in ports.items() if name != "s3"]
    flags += [f"-{name}.port.grpc={_free_port()}" for name in ("master", "volume", "filer")]
    server = subprocess.Popen(
        [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.config={config}",
         f"-s3.port={ports['s3']}", f"-s3.port.grpc={_free_port()}", "-volume.max=20",
         "-master.volumeSizeLimitMB=64", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return f"http://127.0.0.1:{ports['s3']}", server


def client(url: str) -> "S3Client":
    """A client of a server."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
        region_name=KEY["AWS_DEFAULT_REGION"],
    )


def _answers_in_time(url: str, server: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + _PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        if _answers(url):
            return True
        time.sleep(0.5)
    return False


def _answers(url: str) -> bool:
    try:
        client(url).create_bucket(Bucket="ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
