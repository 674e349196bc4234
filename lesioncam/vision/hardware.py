"""Hardware: what the networks' device computes in, and on how many images at a time.

Asking about a CPU needs no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH_SIZES = {"cpu": 4, "cuda": 64}  # images a forward pass takes, by the type of device
_CPU_INFO = Path("/proc/cpuinfo")  # only Linux has it


def native_precision(device: "torch.device | None" = None) -> str:
    """`bfloat16` where the hardware computes in it natively, else `float32`.

    Args:
        device: None for this machine's CPU.
    """
    if device is not None and device.type == "cuda":
        import torch  # noqa: PLC0415

        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if "avx512_bf16" in cpu_features() else "float32"


def cpu_features() -> frozenset[str]:
    """The instruction sets of this machine's CPU, by Linux's names; elsewhere empty."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
