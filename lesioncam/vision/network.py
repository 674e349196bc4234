"""VGG-GAP: a VGG's convolutions, global average pooling and one linear layer.

Jia & Shen (arXiv 1703.01053) after Zhou et al., "Learning Deep Features for Discriminative
Localization" (CVPR 2016): without the last max-pool the map stays fine (14 x 14 at 224 x 224), and
because the linear layer works on pooled features, its weights applied before the pooling give the
class activation map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.vgg import cfgs, make_layers

from lesioncam.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A VGG configuration, in torchvision's notation, and the input side it is made for."""

    layers: tuple[int | str, ...]
    input_side: int


BACKBONES: Mapping[str, Backbone] = {
    "vgg16": Backbone(tuple(cfgs["D"][:-1]), 224),
    "vgg11": Backbone(tuple(cfgs["A"][:-1]), 224),
    "tiny": Backbone((16, "M", 32, "M", 64, "M", 64), 96),
}


class VGGGAP(nn.Module):
    """VGG convolutions without the last max-pool, global average pooling, dropout, linear layer.

    Args:
        backbone: a key of `BACKBONES`.
        classes: the number of classes K.
        mean: per channel, on pixels scaled to [0, 1]; part of the network's state.
        std: per channel, likewise.
        dropout: the probability that a pooled feature is dropped in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        classes: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        dropout: float = 0.5,
    ):
        super().__init__()
        layers = BACKBONES[backbone].layers
        self.features = make_layers(list(layers))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(int(layers[-1]), classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            images: (B, 3, s, s) uint8 RGB.

        Returns:
            logits (B, K) float32, and the features before pooling (B, C, h, w) in the precision
            of the convolutions.
        """
        pixels = (images.float() / 255 - self.mean) / self.std
        features = self.features(pixels.to(self.features[0].weight.dtype))
        pooled = features.float().mean(dim=(2, 3))
        return self.linear(self.dropout(pooled)), features


def load_backbone(network: VGGGAP, backbone: str, weights: str) -> None:
    """Load ImageNet weights into the convolutions, strictly; the linear layer stays as it is.

    Args:
        network: changed in place; where torchvision's weights name their own normalisation, that
            too.
        backbone: the network's backbone, for the message.
        weights: a `.safetensors` or `.pth` path (tensors only), or a torchvision weights name
            such as `VGG16_Weights.IMAGENET1K_V1`.

    Raises:
        InputError: the file or name cannot be loaded, or does not fit the backbone.
    """
    state = _read_weights(network, weights)
    features = {
        name.removeprefix("features."): tensor
        for name, tensor in state.items()
        if name.startswith("features.")
    }
    try:
        network.features.load_state_dict(features, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"--weights: {weights} does not fit the backbone {backbone}: its features.* tensors "
            f"have other names or shapes; name weights made for {backbone}"
        ) from error


def _read_weights(network: VGGGAP, weights: str) -> Mapping[str, Tensor]:
    path = Path(weights)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        if not path.is_file():
            raise InputError(f"--weights: no such file: {weights}")
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files and forbidden pickles raise many types
            raise InputError(
                f"--weights: {weights} is not a file of tensors only; save its state_dict"
            ) from error
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise InputError(f"--weights: {weights} holds no mapping of names to tensors")
        return state
    try:
        entry = get_weight(weights)
    except (AttributeError, KeyError, ValueError) as error:
        raise InputError(
            f"--weights: {weights!r} is neither a .safetensors or .pth path nor a torchvision "
            f"weights name such as VGG16_Weights.IMAGENET1K_V1"
        ) from error
    try:
        state = entry.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise InputError(
            f"--weights: {weights} could not be downloaded ({error}); give a local path instead"
        ) from error
    transforms = entry.transforms()
    network.mean.copy_(torch.tensor(transforms.mean).view(1, 3, 1, 1))
    network.std.copy_(torch.tensor(transforms.std).view(1, 3, 1, 1))
    return state


def prepare_for_inference(network: VGGGAP, device: torch.device, precision: str) -> VGGGAP:
    """Move a network to its device, in evaluation mode, convolutions in `precision`.

    Only the convolutions change precision; normalisation, pooling and the linear layer stay in
    float32, where they cost nothing.
    """
    network.eval().requires_grad_(False).to(device)
    network.features.to(dtype=getattr(torch, precision), memory_format=torch.channels_last)
    return network


def native_precision(device: torch.device) -> str:
    """`bfloat16` where the hardware computes in it natively, else `float32`."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if has() else "float32"
