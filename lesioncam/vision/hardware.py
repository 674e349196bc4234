"""Hardware: what the networks' device computes in, and on how many images at a time.

Asking about a CPU needs no torch.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lesioncam.errors import InputError

if TYPE_CHECKING:
    import torch

BATCH_SIZES = {"cpu": 4, "cuda": 64}  # images a forward pass takes, by the type of device
_CPU_INFO = Path("/proc/cpuinfo")  # only Linux has it

# With one of them a CPU adds products of int8 in int32. Others add pairs of them in int16, which
# saturates, so that results are wrong.
_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_ANOTHER_PRECISION = "choose another precision (rows of one output have the same)"


class Hardware(NamedTuple):
    """What the networks compute on.

    Attributes:
        device: `cuda` or `cpu`.
        precisions: what it computes in natively, the fastest first; `float32` is the last.
    """

    device: str
    precisions: tuple[str, ...]

    @property
    def native_float(self) -> str:
        """The fastest that needs nothing but the weights, `bfloat16` or `float32`."""
        return next(precision for precision in self.precisions if precision != "int8")


def hardware_of(device: "torch.device | None" = None) -> Hardware:
    """What a device computes in.

    Args:
        device: None for this machine's CPU.
    """
    if device is not None and device.type == "cuda":
        import torch  # noqa: PLC0415

        is_recent = torch.cuda.get_device_capability(device) >= (8, 0)
        return Hardware("cuda", ("bfloat16", "float32") if is_recent else ("float32",))
    features = cpu_features()
    found = {
        "int8": has_openvino() and bool(features & _INT8_FEATURES),
        "bfloat16": "avx512_bf16" in features,
        "float32": True,
    }
    return Hardware("cpu", tuple(precision for precision, there in found.items() if there))


def common_hardware(found: Sequence[Hardware]) -> Hardware:
    """What several nodes have in common; `cpu` where torch can use only some of their GPUs."""
    precisions = found[0].precisions
    for other in found[1:]:
        precisions = tuple(name for name in precisions if name in other.precisions)
    devices = {one.device for one in found}
    return Hardware(devices.pop() if len(devices) == 1 else "cpu", precisions)


def choose_precision(asked: str, hardware: Hardware, *, quantized: bool) -> str:
    """The precision of the convolutions: the fastest for `auto`, else the one that was asked for.

    Args:
        asked: one of `PRECISIONS`.
        hardware: what the networks run on.
        quantized: whether the bundle has what int8 needs.

    Raises:
        InputError: the bundle or the hardware does not have the one that was asked for.
    """
    check_ranges(asked, quantized=quantized)
    if asked in hardware.precisions:
        return asked
    if asked == "auto":
        return hardware.precisions[0] if quantized else hardware.native_float
    if asked == "int8" and hardware.device == "cuda":
        raise InputError(
            f"--precision: int8 runs on CPUs only; use --gpus 0, or {_ANOTHER_PRECISION}"
        )
    if asked == "int8":
        raise InputError(
            f"--precision: int8 needs OpenVINO and a CPU with VNNI or AMX, on every node of a "
            f"cluster; {_ANOTHER_PRECISION}"
        )
    raise InputError(
        f"--precision: this hardware, or a node of the cluster, does not compute in {asked}; "
        f"{_ANOTHER_PRECISION}"
    )


def check_ranges(asked: str, *, quantized: bool) -> None:
    """Refuse int8 for a bundle without ranges.

    Raises:
        InputError: saying how to add them.
    """
    if asked == "int8" and not quantized:
        raise InputError(
            "--precision: the bundle has no activation ranges, which int8 needs; add them with "
            "'lesioncam quantize', or choose another precision"
        )


@cache
def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def cpu_features() -> frozenset[str]:
    """The instruction sets of this machine's CPU, by Linux's names; elsewhere empty."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
