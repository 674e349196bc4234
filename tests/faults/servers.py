"""S3 servers in processes of their own: moto and SeaweedFS."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ATTEMPTS = 4
_START_TIMEOUT_S = 60
KEY = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def moto(address: str = "127.0.0.1") -> Iterator[str]:
    """An S3 server that keeps everything in memory.

    In a process of its own: moto servers in one process share their buckets.

    Args:
        address: to listen on.
    """
    with _started(partial(_moto_command, address=address), "moto") as url:
        yield url


def weed() -> str | None:
    """Path of SeaweedFS's program, or None where it is not installed."""
    return shutil.which("weed", path=Path(sys.executable).parent)


@contextmanager
def seaweedfs() -> Iterator[str]:
    """A SeaweedFS server with its S3 gateway; its data is in a temporary directory."""
    with _started(_weed_command, "SeaweedFS") as url:
        yield url


@contextmanager
def _started(command_in: Callable[[Path], tuple[str, list[str]]], name: str) -> Iterator[str]:
    """A server, once it answers.

    Its ports are free when they are chosen, but another process may take one before it does: then
    it is started again with others.

    Args:
        command_in: returns URL and command line, given a directory for the server.
        name: of the server.
    """
    for _ in range(_ATTEMPTS):
        with TemporaryDirectory(prefix="server-") as folder:
            url, command = command_in(Path(folder))
            with TemporaryFile() as log:
                server = subprocess.Popen(command, stdout=log, stderr=log)
                try:
                    if _answers_in_time(url, server):
                        yield url
                        return
                finally:
                    server.kill()
                    server.wait()
                log.seek(0)
                output = log.read().decode(errors="replace")
    raise RuntimeError(f"{name} did not answer in {_ATTEMPTS} attempts; its log:\n{output[-2000:]}")


def _moto_command(folder: Path, address: str) -> tuple[str, list[str]]:
    port = str(_free_port(address))
    program = str(Path(sys.executable).parent / "moto_server")
    return f"http://{address}:{port}", [program, "-H", address, "-p", port]


def _weed_command(folder: Path) -> tuple[str, list[str]]:
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
    # Catalogs would take fixed ports, which may be in use.
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command = [
        program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.config={config}",
        f"-s3.port={ports['s3']}", f"-s3.port.grpc={_free_port()}", "-volume.max=20",
        "-master.volumeSizeLimitMB=64", *flags,
    ]  # fmt: skip
    return f"http://127.0.0.1:{ports['s3']}", command


def client(url: str) -> "S3Client":
    """An S3 client of the server at that URL."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
        region_name=KEY["AWS_DEFAULT_REGION"],
    )


def _answers_in_time(url: str, server: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
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


def _free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
