from pathlib import Path

import pytest
import torch

from lesioncam.vision import hardware
from lesioncam.vision.hardware import cpu_features, native_precision

CPU_INFO = "processor : 0\nflags\t\t: fpu avx2 {}\npower management:\nflags : other\n"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_native_precision_follows_the_gpus_generation(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert native_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("feature", "expected"), [("avx512f", "float32"), ("avx512_bf16", "bfloat16")]
)
def test_native_precision_of_a_cpu_follows_its_instruction_sets(
    feature: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "cpuinfo")
    assert cpu_features() == frozenset()
    assert native_precision() == native_precision(torch.device("cpu")) == "float32"
    (tmp_path / "cpuinfo").write_text(CPU_INFO.format(feature))
    assert cpu_features() == {"fpu", "avx2", feature}
    assert native_precision() == native_precision(torch.device("cpu")) == expected
