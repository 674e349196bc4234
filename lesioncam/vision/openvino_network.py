"""OpenVINO: a VGG-GAP whose convolutions OpenVINO runs on the CPU, also in int8.

For int8 the model says which values are rounded to which levels (FakeQuantize), and OpenVINO makes
convolutions of integers of it: weights symmetric, of a scale for each output channel; activations
from 0 to the end of their range, of one scale. The first convolution stays in float32.
"""

from collections.abc import Sequence

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
        precision: of the convolutions, `float32`, `bfloat16` or `int8`. OpenVINO computes in
            float32 where the CPU has no bfloat16, and wrongly in int8 where it has no VNNI.
        threads: it computes with.
        ranges: for int8, of the activations that each convolution after the first takes.
    """

    def __init__(self, network: VGGGAP, precision: str, threads: int, ranges: Sequence[float] = ()):
        self.class_weights = network.class_weights.detach().clone()
        self._bias = network.linear.bias.detach().clone()
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Pinned, two processes of one thread each share one core.
            "ENABLE_CPU_PINNING": False,
        }
        model = convolutions(network, ranges if precision == "int8" else ())
        self._convolutions = _CORE.compile_model(model, "CPU", options)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify (B, 3, s, s) uint8 RGB; returns logits (B, K) and features (B, C, h, w)."""
        found = self._convolutions({0: images.contiguous().numpy()}, share_inputs=True)[0]
        features = torch.from_numpy(found)
        pooled = features.mean(dim=(2, 3))
        return nn.functional.linear(pooled, self.class_weights, self._bias), features


def convolutions(network: VGGGAP, ranges: Sequence[float] = ()) -> openvino.Model:
    """Normalization, convolutions and max-pools as an OpenVINO model for any batch and size.

    Args:
        network: a VGG-GAP.
        ranges: for int8, of the activations that each convolution after the first takes.
    """
    images = op.parameter([-1, 3, -1, -1], np.uint8)
    pixels = op.divide(op.convert(images, np.float32), _constant(255))
    node = op.divide(op.subtract(pixels, _constant(network.mean)), _constant(network.std))
    state = network.features.state_dict()
    remaining = iter(ranges)
    is_first = True
    for name, module in network.features.named_children():
        match module:
            case nn.Conv2d():
                ones = [1, 1]  # strides, padding at both ends, dilations
                weight = state[f"{name}.weight"]
                quantize = bool(ranges) and not is_first
                kernel = _quantized_weight(weight) if quantize else _constant(weight)
                is_first = False
                node = op.convolution(node, kernel, ones, ones, ones, ones)
                node = op.add(node, op.unsqueeze(_constant(state[f"{name}.bias"]), [1, 2]))
            case nn.ReLU():
                node = op.relu(node)
                # Before a max-pool, which gives the same and then has a quarter of the bytes to
                # read.
                if top := next(remaining, None):
                    node = _quantized(node, _constant(0), _constant(top), levels=256)
            case nn.MaxPool2d():
                node = op.max_pool(node, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
    return openvino.Model([node], [images], "convolutions")


def _quantized_weight(weight: Tensor) -> openvino.Node:
    """Rounded to -127 to 127 times a scale of each output channel."""
    top = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    top = top.where(top > 0, 1.0)  # a channel of zeros has any scale
    return _quantized(_constant(weight), _constant(-top), _constant(top), levels=255)


def _quantized(
    node: openvino.Node, low: openvino.Node, high: openvino.Node, levels: int
) -> openvino.Node:
    """Clipped to a range and rounded to levels in it."""
    return op.fake_quantize(node, low, high, low, high, levels)


def _constant(value: Tensor | float) -> openvino.Node:
    return op.constant(np.asarray(torch.as_tensor(value).detach(), np.float32))
