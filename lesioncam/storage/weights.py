"""Weights: ImageNet weights for a backbone, from a file of tensors or by torchvision's name."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor
from torchvision.models import get_weight

from lesioncam.errors import InputError
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import read_uri
from lesioncam.vision.network import VGGGAP

_FILE_SUFFIXES = (".safetensors", ".pth", ".pt")


def check_weights(weights: str, backbone: str) -> None:
    """Refuse weights that cannot be for the backbone, without downloading or reading them.

    Args:
        weights: as for `load_backbone`.
        backbone: a key of `BACKBONES`.

    Raises:
        InputError: there is no such local file or torchvision name, or the name is that of another
            network.
    """
    path = Path(weights)
    if path.suffix in _FILE_SUFFIXES:
        if "://" not in weights and not path.is_file():
            raise InputError(f"--weights: no such file: {weights}")
    elif type(_named_weights(weights)).__name__.lower() != f"{backbone}_weights":
        raise InputError(
            f"--weights: {weights} is for another network than the backbone {backbone}; name "
            f"weights made for {backbone}"
        )


def load_backbone(network: VGGGAP, backbone: str, weights: str) -> None:
    """Load ImageNet weights into the convolutions, strictly; the linear layer stays as it is.

    Args:
        network: changed in place; where torchvision's weights name their own normalization, that
            too.
        backbone: the network's backbone, for the message.
        weights: a torchvision weights name such as `VGG16_Weights.IMAGENET1K_V1`, or a
            `.safetensors` or `.pth` URI (tensors only). A file says nothing of normalization: its
            weights must be for images normalized with `IMAGENET_MEAN` and `IMAGENET_STD`, which a
            file of torchvision's `IMAGENET1K_FEATURES` are not; name those instead.

    Raises:
        InputError: the file or name cannot be loaded, or does not fit the backbone.
        RunFailedError: its store cannot be reached.
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
    if path.suffix in _FILE_SUFFIXES:
        try:
            data = read_uri(weights)
        except StoreError as error:
            raise refusal(f"--weights: {weights}", error) from error
        try:
            if path.suffix == ".safetensors":
                return load(data)
            state: Mapping[str, Tensor] = torch.load(
                BytesIO(data), map_location="cpu", weights_only=True
            )
        except Exception as error:  # damaged files and forbidden pickles raise many types
            raise InputError(
                f"--weights: {weights} holds more than tensors; save only its state_dict()"
            ) from error
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise InputError(
                f"--weights: {weights} is not a state dict; save one with "
                f"torch.save(model.state_dict(), path)"
            )
        return state
    entry = _named_weights(weights)
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


def _named_weights(name: str) -> Any:
    """An entry of torchvision's weights enums; nothing is downloaded yet."""
    try:
        return get_weight(name)
    except (AttributeError, KeyError, ValueError) as error:
        raise InputError(
            f"--weights: {name!r} is neither a .safetensors or .pth path nor a torchvision "
            f"weights name such as VGG16_Weights.IMAGENET1K_V1"
        ) from error
