"""OpenVINO: a VGG-GAP whose convolutions OpenVINO runs on the CPU."""

import numpy as np
import openvino
import torch
from openvino import opset13 as op
from torch import Tensor, nn

from lesioncam.vision.network import VGGGAP

# A property of the CPU device, read in every process: a plugin that is made once and kept.
_CORE = openvino.Core()


class OpenVINONetwork:
    """The same function as the network it is made from, in evaluation mode.

    Pooling and the linear layer stay in torch, in float32, as in `VGGGAP.forward`.

    Args:
        network: its weights are copied.
        precision: of the convolutions, `float32` or `bfloat16`. OpenVINO computes in float32 where
            the CPU has no bfloat16.
        threads: it computes with.
    """

    def __init__(self, network: VGGGAP, precision: str, threads: int):
        self.class_weights = network.class_weights.detach().clone()
        self._bias = network.linear.bias.detach().clone()
        options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Pinned, two processes of one thread each share one core.
            "ENABLE_CPU_PINNING": False,
        }
        self._convolutions = _CORE.compile_model(_convolutions(network), "CPU", options)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify (B, 3, s, s) uint8 RGB; returns logits (B, K) and features (B, C, h, w)."""
        found = self._convolutions({0: images.contiguous().numpy()}, share_inputs=True)[0]
        features = torch.from_numpy(found)
        pooled = features.mean(dim=(2, 3))
        return nn.functional.linear(pooled, self.class_weights, self._bias), features


def _convolutions(network: VGGGAP) -> openvino.Model:
    """Normalization, convolutions and max-pools as an OpenVINO model for any batch and size."""
    images = op.parameter([-1, 3, -1, -1], np.uint8)
    pixels = op.divide(op.convert(images, np.float32), _constant(255))
    node = op.divide(op.subtract(pixels, _constant(network.mean)), _constant(network.std))
    state = network.features.state_dict()
    for name, module in network.features.named_children():
        match module:
            case nn.Conv2d():
                ones = [1, 1]  # strides, padding at both ends, dilations
                weight = _constant(state[f"{name}.weight"])
                node = op.convolution(node, weight, ones, ones, ones, ones)
                node = op.add(node, op.unsqueeze(_constant(state[f"{name}.bias"]), [1, 2]))
            case nn.ReLU():
                node = op.relu(node)
            case nn.MaxPool2d():
                node = op.max_pool(node, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
    return openvino.Model([node], [images], "convolutions")


def _constant(value: Tensor | float) -> openvino.Node:
    return op.constant(np.asarray(torch.as_tensor(value).detach(), np.float32))
