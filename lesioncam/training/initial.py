"""What the stages start from: the network's shape, loaded or drawn weights, stage 2's own head."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES, ModelSettings, TrainSettings
from lesioncam.storage.labels import Labels
from lesioncam.storage.weights import load_backbone
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, build_network


def resolve_recipe(settings: TrainSettings) -> TrainSettings:
    """The recipe with nothing left open: where it names no input side it has the backbone's own.

    Raises:
        InputError: there is no such backbone.
    """
    return replace(settings, input_size=_input_side(settings))


def _input_side(settings: TrainSettings) -> int:
    if settings.backbone not in BACKBONES:
        raise InputError(f"--backbone: {settings.backbone!r} is not one of {', '.join(BACKBONES)}")
    return settings.input_size or BACKBONES[settings.backbone].input_size


def initial_network(
    settings: TrainSettings, labels: Labels
) -> tuple[ModelSettings, Mapping[str, Tensor]]:
    """The network's shape and the weights that stage 1 starts from."""
    side = _input_side(settings)
    torch.manual_seed(settings.seed)
    model = ModelSettings(
        classes=labels.classes,
        backbone=settings.backbone,
        input_size=side,
        canvas_size=round(side * settings.canvas_scale),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        stage2_weight=settings.stage2_weight,
        crop=settings.crop,
        test_time_rotation=settings.test_time_rotation,
    )
    network = build_network(model)
    if settings.weights is not None:
        load_backbone(network, settings.backbone, settings.weights)
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (network.mean, network.std))
    return replace(model, mean=mean, std=std), network.state_dict()


def reinitialize_head(initial: Mapping[str, Tensor], seed: int) -> Mapping[str, Tensor]:
    """A linear layer for stage 2, drawn apart from stage 1's: a mean gains by what differs."""
    classes, features = initial["linear.weight"].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, 2]).generate_state(1)[0]))
        head = torch.nn.Linear(features, classes).state_dict()
    return {f"linear.{name}": value for name, value in head.items()}
