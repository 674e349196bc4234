"""Engine: a stage's network, ready for inference, by what runs it fastest.

OpenVINO on CPUs, where it is installed; PyTorch, the reference, on GPUs and elsewhere. Both take
the same weights and give logits and features alike: CAM, box and crop do not depend on the engine.
Only OpenVINO has int8.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lesioncam.settings import ModelSettings
from lesioncam.vision.classifier import Network
from lesioncam.vision.hardware import choose_precision, hardware_of, has_openvino
from lesioncam.vision.network import build_network, prepare_for_inference


def load_network(
    settings: ModelSettings,
    state: Mapping[str, Tensor],
    device: torch.device,
    precision: str,
    ranges: Sequence[float] = (),
) -> Network:
    """One stage's network on a device.

    Args:
        settings: the bundle's.
        state: the stage's tensors.
        device: `cpu` or `cuda`. On CPU it computes with as many threads as torch does now.
        precision: of the convolutions, `float32`, `bfloat16` or `int8`.
        ranges: the stage's of the bundle's `Quantization`; only int8 needs them.

    Raises:
        InputError: the device does not compute in this precision, as on a node that joined its
            cluster late, or there are no ranges for int8.
    """
    choose_precision(precision, hardware_of(device), quantized=bool(ranges))
    network = build_network(settings, state)
    if device.type == "cpu" and has_openvino():
        from lesioncam.vision.openvino_network import OpenVINONetwork  # noqa: PLC0415

        return OpenVINONetwork(network, precision, torch.get_num_threads(), ranges)
    return prepare_for_inference(network, device, precision)
