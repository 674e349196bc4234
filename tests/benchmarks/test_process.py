import pytest

from benchmarks.process import run


def test_memory_is_that_of_the_process_and_its_children() -> None:
    child = "import time; held = bytearray(200 * 2**20); time.sleep(3)"
    finished = run(
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
        interval=0.5,
    )
    assert finished.peak_mib > 200
    assert finished.seconds > 3


def test_a_command_that_fails_raises_with_its_output() -> None:
    with pytest.raises(RuntimeError, match="exited with 3:\nno such thing"):
        run("-c", "print('no such thing'); raise SystemExit(3)")
