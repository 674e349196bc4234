"""Engine: a stage's network, ready for inference, by what runs it fastest.

OpenVINO on CPUs, where it is installed; PyTorch, the reference, on GPUs and elsewhere. Both take
the same weights and give logits and features alike: CAM, box and crop do not depend on the engine.
"""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lesioncam.settings import ModelSettings
from lesioncam.vision.classifier import Network
from lesioncam.vision.network import build_network, prepare_for_inference


def load_network(
    settings: ModelSettings, state: Mapping[str, Tensor], device: torch.device, precision: str
) -> Network:
    """One stage's network on a device.

    Args:
        settings: the bundle's.
        state: the stage's tensors.
        device: `cpu` or `cuda`. On CPU it computes with as many threads as torch does now.
        precision: of the convolutions, `float32` or `bfloat16`.
    """
    network = build_network(settings, state)
    if device.type == "cpu" and has_openvino():
        from lesioncam.vision.openvino_network import OpenVINONetwork  # noqa: PLC0415

        return OpenVINONetwork(network, precision, torch.get_num_threads())
    return prepare_for_inference(network, device, precision)


@cache
def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None
