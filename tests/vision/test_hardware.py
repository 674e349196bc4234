from pathlib import Path

import pytest
import torch

from lesioncam.errors import InputError
from lesioncam.vision import hardware
from lesioncam.vision.hardware import (
    Hardware,
    choose_precision,
    common_hardware,
    cpu_features,
    hardware_of,
)

CPU_INFO = "processor : 0\nflags\t\t: fpu avx2 {}\npower management:\nflags : other\n"


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_native_precision_follows_the_gpus_generation(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert hardware_of(torch.device("cuda")).native_float == expected


@pytest.mark.parametrize(
    ("feature", "expected"), [("avx512f", "float32"), ("avx512_bf16", "bfloat16")]
)
def test_native_precision_of_a_cpu_follows_its_instruction_sets(
    feature: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "cpuinfo")
    assert cpu_features() == frozenset()
    assert hardware_of().native_float == hardware_of(torch.device("cpu")).native_float == "float32"
    (tmp_path / "cpuinfo").write_text(CPU_INFO.format(feature))
    assert cpu_features() == {"fpu", "avx2", feature}
    assert hardware_of().native_float == hardware_of(torch.device("cpu")).native_float == expected


@pytest.mark.parametrize(
    ("features", "has_openvino", "expected"),
    [
        (["avx2"], True, ("float32",)),
        (["avx_vnni"], True, ("int8", "float32")),
        (["avx512_vnni"], False, ("float32",)),
        (["avx512_vnni", "avx512_bf16"], True, ("int8", "bfloat16", "float32")),
        (["amx_int8", "avx512_bf16"], True, ("int8", "bfloat16", "float32")),
    ],
)
def test_a_cpu_with_vnni_or_amx_computes_in_int8_by_openvino(
    monkeypatch: pytest.MonkeyPatch,
    features: list[str],
    has_openvino: bool,
    expected: tuple[str, ...],
) -> None:
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset(features))
    monkeypatch.setattr(hardware, "has_openvino", lambda: has_openvino)
    assert hardware_of() == Hardware("cpu", expected)
    assert hardware_of().native_float == expected[-2 if "bfloat16" in expected else -1]


ALL, FLOATS, NONE = ("int8", "bfloat16", "float32"), ("bfloat16", "float32"), ("float32",)


@pytest.mark.parametrize(
    ("nodes", "common"),
    [([ALL], ALL), ([ALL, FLOATS], FLOATS), ([FLOATS, ALL, NONE], NONE), ([ALL, ALL], ALL)],
)
def test_nodes_have_in_common_what_all_of_them_have(
    nodes: list[tuple[str, ...]], common: tuple[str, ...]
) -> None:
    found = [Hardware("cpu", precisions) for precisions in nodes]
    assert common_hardware(found) == Hardware("cpu", common)


@pytest.mark.parametrize(
    ("asked", "precisions", "quantized", "expected"),
    [
        ("auto", ALL, True, "int8"),
        ("auto", ALL, False, "bfloat16"),
        ("auto", NONE, True, "float32"),
        ("int8", ALL, True, "int8"),
        ("bfloat16", ALL, True, "bfloat16"),
        ("float32", ALL, True, "float32"),
        ("int8", ALL, False, None),
        ("int8", FLOATS, True, None),
        ("bfloat16", NONE, True, None),
    ],
)
def test_a_precision_is_chosen_or_refused(
    asked: str, precisions: tuple[str, ...], quantized: bool, expected: str | None
) -> None:
    if expected is None:
        with pytest.raises(InputError, match=r"^--precision: .*choose another precision"):
            choose_precision(asked, Hardware("cpu", precisions), quantized=quantized)
    else:
        found = choose_precision(asked, Hardware("cpu", precisions), quantized=quantized)
        assert found == expected
