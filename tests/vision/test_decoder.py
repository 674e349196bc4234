"""Decoder: the same results as in-process decoding; images that hang or crash it harm nothing."""

import io
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import DecodeError, decode
from lesioncam.vision.decoder import Decoder, Decoders


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def png(width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def many_scans(scans: int) -> bytes:
    """A JPEG that repeats one scan: little to read, much to compute."""
    sink = io.BytesIO()
    Image.new("L", (4000, 4000), 100).save(sink, "JPEG", progressive=True)
    data = sink.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * scans + data[-2:]


def refused(decoder: Decoder, data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as error:
        decoder.decode(data, 32)
    return error.value


def test_decodes_as_in_process(decoder: Decoder) -> None:
    for number, size in enumerate((32, 32, 448, 7)):
        data = png(60 + number, seed=number)
        here, there = decode(data, size), decoder.decode(data, size)
        assert np.array_equal(here.canvas, there.canvas)
        assert (here.width, here.height) == (there.width, there.height)
        assert here.quality == there.quality != ()


@pytest.mark.parametrize("data", [b"", b"no image", png()[:-40], png()[:20]])
def test_refuses_as_in_process(decoder: Decoder, data: bytes) -> None:
    with pytest.raises(DecodeError) as here:
        decode(data, 32)
    there = refused(decoder, data)
    assert (there.kind, there.message, there.size) == (
        here.value.kind, here.value.message, here.value.size,
    )  # fmt: skip
    assert decoder.decode(png(), 32).width == 60


def test_decoding_stops_at_the_time_limit_and_the_next_image_is_decoded() -> None:
    decoder = Decoder(seconds=0.5)
    error = refused(decoder, many_scans(3000))
    assert error.kind is ErrorKind.DECODE_TIMEOUT
    assert error.message == "decoding took longer than 0.5 s"
    assert decoder.decode(png(), 32).width == 60
    decoder.close()


def test_an_image_above_the_memory_limit_is_too_large() -> None:
    decoder = Decoder(memory=64 * 2**20)
    sink = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(sink, "PNG")
    assert refused(decoder, sink.getvalue()).kind is ErrorKind.TOO_LARGE
    assert decoder.decode(png(), 32).width == 60
    decoder.close()


def test_a_process_that_dies_once_is_replaced(decoder: Decoder) -> None:
    decoder.decode(png(), 32)
    process = decoder._started()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert decoder.decode(png(), 32).width == 60
    assert decoder._started().pid != process.pid


@pytest.mark.parametrize(
    ("ended_by", "kind", "message"),
    [
        ("SIGSEGV", ErrorKind.TRUNCATED, "the decoder crashes on it (SIGSEGV)"),
        ("SIGKILL", ErrorKind.UNREACHABLE, "the decoder was killed while decoding it"),
    ],
)
def test_an_image_that_ends_the_decoder_twice_is_an_error(
    monkeypatch: pytest.MonkeyPatch, ended_by: str, kind: ErrorKind, message: str
) -> None:
    code = (
        "import os, signal, sys; os.write(1, b'r'); sys.stdin.buffer.read(1);"
        f"os.kill(os.getpid(), signal.{ended_by})"
    )
    monkeypatch.setattr("lesioncam.vision.decoder._COMMAND", ("-c", code))
    error = refused(Decoder(), png())
    assert (error.kind, error.message) == (kind, message)


def test_a_decoder_that_does_not_start_is_not_blamed_on_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lesioncam.vision.decoder._COMMAND", ("-c", "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"does not start \(exit code 3\)"):
        Decoder().decode(png(), 32)


def test_its_process_imports_no_large_library() -> None:
    code = "import sys, lesioncam.vision.decoder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    large = {"pyarrow", "torch", "pydantic", "pandas", "scipy", "sklearn", "ray", "boto3"}
    assert not imported & large


def test_it_has_no_credentials(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    decoder.decode(png(), 32)
    assert "AWS_SECRET_ACCESS_KEY" not in psutil.Process(decoder._started().pid).environ()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such names")
def test_an_images_memory_is_reused_for_the_next(decoder: Decoder) -> None:
    data = png(1022, 767)
    faults = []
    for _ in range(4):
        decoder.decode(data, 448)
        stat = Path(f"/proc/{decoder._started().pid}/stat").read_text(encoding="ascii")
        faults.append(int(stat.rpartition(")")[2].split()[7]))
    assert faults[3] - faults[2] < 50  # pages of 4 KiB; an image and its canvas take 720


def test_its_process_ends_with_its_parent(decoder: Decoder) -> None:
    decoder.decode(png(), 32)
    process = decoder._started()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    decoder._process = None


def test_threads_share_decoders() -> None:
    made: list[Decoder] = []

    def make() -> Decoder:
        made.append(Decoder())
        return made[-1]

    decoders = Decoders(2, make)
    images = [png(50 + number, seed=number) for number in range(12)]
    widths: dict[int, int] = {}

    def one(number: int) -> None:
        widths[number] = decoders.decode(images[number], 16).width

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert widths == {number: 50 + number for number in range(12)}
    assert len(made) == 2
    for decoder in made:
        decoder.close()
