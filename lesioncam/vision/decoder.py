"""Decoder: decodes images in a process of its own, so that a hostile image harms nothing else.

Image libraries are large C programs that read untrusted bytes: a file may make them loop for
hours, ask for all memory or crash. Here that ends one small process, and its caller gets a
`DecodeError` like any other. Knows nothing about Ray or where the bytes came from.
"""

import json
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lesioncam.columns import ErrorKind, Quality
from lesioncam.vision.decode import Decoded, DecodeError, decode

SECONDS = 60.0  # limit for one image; the largest allowed take some five
MEMORY = 3 * 2**30  # limit for one image in bytes; the largest allowed take some 0.8 GB

_COMMAND = ("-m", "lesioncam.vision.decoder")
# glibc keeps an ordinary image's memory for the next one: getting the pages from the system again
# took a tenth of decoding. Both are set, because setting either stops glibc from adapting them.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
_READY = b"r"  # sent once, before the first request
_REQUEST = struct.Struct("<IQ")  # canvas size, bytes that follow
_ANSWER = struct.Struct("<I")  # bytes of JSON that follow; after them the canvas if there is one


class Decoder:
    """Decodes one image after another in another process, which is replaced if it dies.

    Args:
        seconds: time limit for one image.
        memory: memory limit for one image, in bytes.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self._limits = [str(seconds), str(memory)]
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def decode(self, data: bytes, size: int) -> Decoded:
        """As `lesioncam.vision.decode.decode`.

        Raises:
            DecodeError: as there; also `decode_timeout`, `truncated` for an image that crashes the
                decoder twice, and `unreachable` where the system killed it twice.
            RuntimeError: the decoder does not start.
        """
        for _ in range(2):  # the process may have died for another reason than this image
            process = self._started()
            try:
                return self._ask(process, data, size)
            except DecodeError:
                raise
            except (OSError, EOFError):
                ended = process.wait()
                self.close()
                if ended == -signal.SIGALRM:
                    message = f"decoding took longer than {self._seconds:g} s"
                    raise DecodeError(ErrorKind.DECODE_TIMEOUT, message) from None
            except BaseException:  # the rest of this answer must not be read as the next one
                self.close()
                raise
        if ended == -signal.SIGKILL:  # by the system, out of memory: may succeed another time
            raise DecodeError(ErrorKind.UNREACHABLE, "the decoder was killed while decoding it")
        raise DecodeError(ErrorKind.TRUNCATED, f"the decoder crashes on it ({_name_of(ended)})")

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._owner != os.getpid():  # forked: the parent goes on using the decoder it started
            self._process, self._owner = None, os.getpid()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, *_COMMAND, *self._limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries print details of images
                env={
                    **{name: value for name, value in os.environ.items() if name[:4] != "AWS_"},
                    **_MALLOC,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
            if self._process.stdout is None or self._process.stdout.read(1) != _READY:
                code = self._process.wait()
                self.close()
                raise RuntimeError(f"the decoder does not start ({_name_of(code)})")
        return self._process

    @staticmethod
    def _ask(process: "subprocess.Popen[bytes]", data: bytes, size: int) -> Decoded:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_REQUEST.pack(size, len(data)))
        process.stdin.write(data)
        process.stdin.flush()
        (length,) = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
        answer: dict[str, Any] = json.loads(_read(process.stdout, length))
        if "kind" in answer:
            declared = tuple(answer["size"]) if answer["size"] else None
            raise DecodeError(ErrorKind(answer["kind"]), answer["message"], declared)
        pixels = np.frombuffer(_read(process.stdout, size * size * 3), np.uint8)
        quality = tuple(Quality(name) for name in answer["quality"])
        canvas = pixels.reshape(size, size, 3)
        return Decoded(canvas, answer["width"], answer["height"], quality)


class Decoders:
    """A pool of `count` decoders for several threads; a process starts when it is first needed."""

    def __init__(self, count: int, make: Callable[[], Decoder] = Decoder):
        self._idle: queue.LifoQueue[Decoder] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(make())

    def decode(self, data: bytes, size: int) -> Decoded:
        """As `Decoder.decode`; waits until one is free."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data, size)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes; no thread may be decoding."""
        for _ in range(self._idle.qsize()):
            decoder = self._idle.get()
            decoder.close()
            self._idle.put(decoder)


def serve(requests: BinaryIO, answers: BinaryIO, seconds: float) -> None:
    """Answer requests until the pipe is closed.

    The alarm has no handler, so it ends the process whatever it is doing.
    """
    while header := requests.read(_REQUEST.size):
        size, length = _REQUEST.unpack(header)
        data = requests.read(length)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            decoded = decode(data, size)
        except DecodeError as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _answer(answers, kind=error.kind, message=error.message, size=error.size)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _answer(
                answers,
                decoded.canvas,
                width=decoded.width,
                height=decoded.height,
                quality=decoded.quality,
            )


def _answer(answers: BinaryIO, canvas: np.ndarray | None = None, **fields: Any) -> None:
    content = json.dumps(fields).encode()
    answers.write(_ANSWER.pack(len(content)) + content)
    if canvas is not None:
        answers.write(np.ascontiguousarray(canvas).data)
    answers.flush()


def _read(pipe: Any, length: int) -> bytes:
    data: bytes = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _name_of(code: int) -> str:
    """The signal or exit code that ended a process."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _limit_memory(more: int) -> None:
    """Limit the address space to its present size and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Serve the process that started this one, through its pipes."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be read as an answer
    if sys.platform == "linux":
        _limit_memory(memory)
    answers.write(_READY)
    answers.flush()
    serve(sys.stdin.buffer, answers, seconds)


if __name__ == "__main__":
    main()
