"""Class activation maps: where in the image the network found evidence for each class.

Zhou et al. (CVPR 2016), equation 2: the map of class k is the linear layer's weights of that class
times the features before pooling. No hooks: the network returns its features.

Shapes: `B` batch, `C` feature channels, `K` classes, `h, w` rows and columns of a map.
"""

import torch
import torch.nn.functional as F
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


def lesion_loss(maps: Tensor, lesions: Tensor) -> Tensor:
    """The segmentation loss of each image's map against its lesion mask.

    Binary cross-entropy of the map's sigmoid, plus the soft Dice loss
    `1 - (2 sum(s m) + 1) / (sum(s + m) + 1)` of sigmoid s and mask m (Milletari et al., arXiv
    1606.04797), which weighs small lesions as much as large ones. A term that the linear layer
    adds to all classes changes this loss and no class probability, so a map can learn the lesion
    without a cost in classification.

    Args:
        maps: (B, h, w) in logits, the maps behind the boxes, as `choose_map` gives them.
        lesions: (B, h, w) float in [0, 1], the fraction of each cell that is lesion.

    Returns:
        (B,) float32; 0 where there is no lesion.
    """
    entropy = F.binary_cross_entropy_with_logits(maps, lesions, reduction="none").mean(dim=(1, 2))
    inside = maps.sigmoid()
    overlap, total = (inside * lesions).sum(dim=(1, 2)), (inside + lesions).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return (entropy + dice) * lesions.flatten(1).any(dim=1)


def choose_map(maps: Tensor, scores: Tensor, rule: str) -> Tensor:
    """Reduce the class maps to the one that the box is made from.

    Args:
        maps: (B, K, h, w).
        scores: (B, K), logits or probabilities.
        rule: `predicted`, the map of the class with the highest score; or `maximum`, at each
            position the highest over the classes, whichever that is.

    Returns:
        (B, h, w).

    Raises:
        ValueError: no such rule.
    """
    if rule not in MAP_RULES:
        raise ValueError(f"map rule {rule!r} is not one of {', '.join(MAP_RULES)}")
    if rule == "predicted":
        return maps[torch.arange(len(maps), device=maps.device), scores.argmax(dim=1)]
    return maps.amax(dim=1)


def normalize_map(maps: Tensor) -> tuple[Tensor, Tensor]:
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
