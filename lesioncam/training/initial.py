"""What the stages start from: the network's settings, its first weights, stage 2's linear layer."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, ModelSettings, TrainSettings, explain
from lesioncam.storage.labels import Labels
from lesioncam.storage.weights import load_backbone
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network


def initial_network(
    settings: TrainSettings, labels: Labels
) -> tuple[ModelSettings, Mapping[str, Tensor]]:
    """The network's settings and the weights that stage 1 starts from.

    Raises:
        InputError: the weights cannot be loaded, or the sizes do not fit together.
        RunFailedError: their store cannot be reached.
    """
    size = settings.input_size or BACKBONES[settings.backbone].input_size
    torch.manual_seed(settings.seed)
    try:
        model = ModelSettings(
            classes=labels.classes,
            backbone=settings.backbone,
            input_size=size,
            canvas_size=round(size * settings.canvas_scale),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            stage2_weight=settings.stage2_weight,
            crop=settings.crop,
            test_time_rotation=settings.test_time_rotation,
        )
    except ValidationError as error:
        raise InputError(f"--config: {explain(error, ModelSettings)}") from error
    network = build_network(model)
    if settings.weights is not None:
        load_backbone(network, settings.backbone, settings.weights)
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (network.mean, network.std))
    return replace(model, mean=mean, std=std), network.state_dict()


def reinitialize_head(initial: Mapping[str, Tensor], seed: int) -> Mapping[str, Tensor]:
    """The same weights with a new random linear layer, for stage 2.

    Its seed is not stage 1's: the mean of two stages gains by how much they differ.
    """
    classes, features = initial["linear.weight"].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, 2]).generate_state(1)[0]))
        head = torch.nn.Linear(features, classes).state_dict()
    return {**initial, **{f"linear.{name}": value for name, value in head.items()}}
