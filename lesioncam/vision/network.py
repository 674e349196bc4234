"""VGG-GAP: a VGG's convolutions, global average pooling and one linear layer.

Jia & Shen (arXiv 1703.01053) after Zhou et al., "Learning Deep Features for Discriminative
Localization" (CVPR 2016). Without the last max-pool the map is finer (10 x 10 at 160 x 160). The
linear layer works on pooled features, so its weights applied before pooling give the class
activation map.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lesioncam.settings import BACKBONES, ModelSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGGGAP(nn.Module):
    """VGG convolutions without the last max-pool, global average pooling, dropout, linear layer.

    Args:
        backbone: a key of `lesioncam.settings.BACKBONES`.
        classes: the number of classes K.
        mean: of the normalization, per channel, on pixels scaled to [0, 1]; part of the state.
        std: likewise.
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
        self.features = _convolutions(layers)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(int(layers[-1]), classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def class_weights(self) -> Tensor:
        """(K, C) float32, the linear layer's weights: applied before pooling they give the maps."""
        return self.linear.weight

    def normalize(self, images: Tensor) -> Tensor:
        """The float32 input of the convolutions, from (B, 3, s, s) uint8 RGB."""
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images.

        Args:
            images: (B, 3, s, s) uint8 RGB.

        Returns:
            logits (B, K) float32, and the features before pooling (B, C, h, w) in the precision
            of the convolutions.
        """
        pixels = self.normalize(images)
        features = self.features(pixels.to(next(self.features.parameters()).dtype))
        pooled = features.float().mean(dim=(2, 3))
        with torch.autocast(features.device.type, enabled=False):  # mixed precision ends here
            logits = self.linear(self.dropout(pooled))
        return logits, features


def build_network(settings: ModelSettings, state: Mapping[str, Tensor] | None = None) -> VGGGAP:
    """One stage's network: with these weights, loaded strictly, or untrained."""
    network = VGGGAP(settings.backbone, len(settings.classes), settings.mean, settings.std)
    if state is not None:
        network.load_state_dict(dict(state), strict=True)
    return network


def _convolutions(layers: tuple[int | str, ...]) -> nn.Sequential:
    # With torchvision's layers and tensor names; importing torchvision costs a process a second.
    modules: list[nn.Module] = []
    channels = 3
    for layer in layers:
        if isinstance(layer, int):
            modules += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU(inplace=True)]
            channels = layer
        else:
            modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules)


def prepare_for_inference(network: VGGGAP, device: torch.device, precision: str) -> VGGGAP:
    """Move a network to its device, in evaluation mode, with convolutions in `precision`.

    Normalization, pooling and the linear layer stay in float32, at no cost. float32 is the
    reference: torch computes convolutions in TF32 by default, with ten bits of mantissa, and here
    that is disabled for the process.
    """
    if precision == "float32":
        torch.backends.cudnn.allow_tf32 = False
    network.eval().requires_grad_(False).to(device)
    network.features.to(getattr(torch, precision)).to(memory_format=torch.channels_last)
    return network
