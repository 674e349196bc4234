"""Class activation maps: where in the image the network found each class.

Zhou et al. (CVPR 2016), equation 2: the map of class k is the linear layer's weights of that class
times the features before pooling. No hooks: the network returns its features.
"""

import torch
from torch import Tensor

from lesioncam.settings import MAP_RULES

FLAT_RANGE = 1e-4  # a map whose values span less than this, in logits, has no peak


def class_activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Compute the maps of every class: `M_k(y, x) = sum_c w[k, c] * f[c, y, x]`.

    The mean of a map over its positions plus the class's bias is the class's logit. The maps are
    not rectified: evidence against a class counts as such.

    Args:
        features: (B, C, h, w), before pooling.
        weight: (K, C), the linear layer's.

    Returns:
        (B, K, h, w) float32.
    """
    return torch.einsum("bchw,kc->bkhw", features.float(), weight.float())


def mask_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """How much of each image's class maps lies outside its lesion, as a loss to train by.

    Each class's map, divided by its standard deviation, becomes a distribution over positions by a
    softmax; the loss is minus the logarithm of its share inside the mask, meaned over the classes.
    All classes count alike, so the label does not show in where the maps sit.

    Args:
        maps: (B, K, h, w).
        masks: (B, h, w) float in [0, 1], the share of each cell that is lesion.

    Returns:
        (B,) float32; 0 where a mask is empty.
    """
    flat = maps.flatten(2)
    scaled = flat / flat.std(dim=2, keepdim=True).clamp(min=FLAT_RANGE)
    share = (scaled.softmax(dim=2) * masks.flatten(1)[:, None]).sum(dim=2)
    loss = -share.clamp(min=1e-6).log().mean(dim=1)
    return torch.where(masks.flatten(1).any(dim=1), loss, torch.zeros_like(loss))


def choose_map(maps: Tensor, logits: Tensor, rule: str) -> Tensor:
    """Reduce the class maps to the one that is cropped after.

    Args:
        maps: (B, K, h, w).
        logits: (B, K).
        rule: `predicted`, the map of the class with the highest logit; or `maximum`, at each
            position the highest over the classes, whichever that is.

    Returns:
        (B, h, w).

    Raises:
        ValueError: no such rule.
    """
    if rule not in MAP_RULES:
        raise ValueError(f"map rule {rule!r} is not one of {', '.join(MAP_RULES)}")
    if rule == "predicted":
        return maps[torch.arange(len(maps), device=maps.device), logits.argmax(dim=1)]
    return maps.amax(dim=1)


def normalise_map(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each map to [0, 1], its minimum 0 and its peak 1.

    Args:
        maps: (B, h, w).

    Returns:
        (B, h, w) float32 in [0, 1], and (B,) bool: the map is flat (its values span less than
        `FLAT_RANGE`, or are not finite), in which case it is all zeros.
    """
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    flat = ~(span > FLAT_RANGE) | ~torch.isfinite(span)
    scaled = torch.where(flat, torch.zeros_like(maps), (maps - low) / span)
    return scaled, flat.flatten()
