"""VGG-GAP: shapes, names, normalization and precision."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lesioncam.settings import BACKBONES
from lesioncam.vision.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VGGGAP,
    prepare_for_inference,
)

CPU = torch.device("cpu")


def tiny(classes: int = 3, seed: int = 0) -> VGGGAP:
    torch.manual_seed(seed)
    return VGGGAP("tiny", classes).eval()


def images(count: int, size: int = 96, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


# Shapes and names


@pytest.mark.parametrize(
    ("backbone", "channels", "cells"), [("vgg16", 512, 10), ("vgg11", 512, 10), ("tiny", 64, 12)]
)
def test_shapes_at_the_input_size(backbone: str, channels: int, cells: int) -> None:
    size = BACKBONES[backbone].input_size
    network = VGGGAP(backbone, 5).eval()
    with torch.inference_mode():
        logits, features = network(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert logits.shape == (1, 5)
    assert features.shape == (1, channels, cells, cells)
    assert logits.dtype == features.dtype == torch.float32


@pytest.mark.parametrize(("backbone", "last"), [("vgg16", 28), ("vgg11", 18)])
def test_tensors_have_torchvisions_names_and_shapes(backbone: str, last: int) -> None:
    with torch.device("meta"):
        ours = VGGGAP(backbone, 3).state_dict()
        theirs = getattr(torchvision.models, backbone)().state_dict()  # no memory on this device
    features = {name: tensor.shape for name, tensor in theirs.items() if "features." in name}
    others = {"linear.weight": (3, 512), "linear.bias": (3,)}
    buffers = {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
    assert {name: tensor.shape for name, tensor in ours.items()} == features | others | buffers
    assert f"features.{last}.bias" in features


def test_convolutions_compute_what_torchvisions_do() -> None:
    theirs = torchvision.models.vgg11().features[:-1].eval()
    ours = VGGGAP("vgg11", 3).features
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=0, atol=0)


def test_initial_convolutions_keep_the_signals_size() -> None:
    torch.manual_seed(0)
    network = VGGGAP("tiny", 2)
    for module in network.features:
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.out_channels * 9))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert module.bias is not None
            assert not module.bias.any()


# What forward computes


@pytest.mark.parametrize("color", [(0, 0, 0), (10, 200, 90)])
def test_uint8_pixels_are_normalized_by_hand(color: tuple[int, int, int]) -> None:
    network = tiny()
    received: list[Tensor] = []
    network.features.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    network(torch.tensor(color, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 96, 96))
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip(color, IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    (pixels,) = received
    assert pixels.shape == (1, 3, 96, 96)
    assert (pixels == pixels[:, :, :1, :1]).all()
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_own_mean_and_std_are_used_and_kept_in_the_state() -> None:
    torch.manual_seed(0)
    plain = VGGGAP("tiny", 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    scaled = VGGGAP("tiny", 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    assert scaled.state_dict()["std"].flatten().tolist() == [0.25, 0.25, 0.25]
    batch = images(1)
    scaled.features.load_state_dict(plain.features.state_dict())
    expected = plain.features((batch.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(scaled(batch)[1], expected)
    plain.load_state_dict(scaled.state_dict())
    assert torch.equal(plain(batch)[0], scaled(batch)[0])


def test_logits_are_mean_of_features_through_the_linear_layer() -> None:
    network = tiny()
    nn.init.normal_(network.linear.bias)
    logits, features = network(images(3))
    pooled = features.mean(dim=(2, 3))
    by_hand = pooled @ network.linear.weight.T + network.linear.bias
    torch.testing.assert_close(logits, by_hand)


def test_dropout_acts_only_in_training() -> None:
    network = tiny()
    batch = images(2)
    assert torch.equal(network(batch)[0], network(batch)[0])
    network.train()
    assert not torch.equal(network(batch)[0], network(batch)[0])
    network.dropout.p = 0.0
    assert torch.equal(network(batch)[0], network(batch)[0])


def test_batch_equals_singles() -> None:
    network = tiny()
    batch = images(5)
    with torch.inference_mode():
        together = network(batch)
        singles = [network(batch[i : i + 1]) for i in range(5)]
    for result, alone in zip(together, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(result, torch.cat(alone))


# Inference


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_convolutions_change_precision(precision: str) -> None:
    network = tiny().train()
    prepared = prepare_for_inference(network, CPU, precision)
    assert prepared is network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    wanted = getattr(torch, precision)
    assert {parameter.dtype for parameter in network.features.parameters()} == {wanted}
    for tensor in (network.linear.weight, network.linear.bias, network.mean, network.std):
        assert tensor.dtype == torch.float32
    logits, features = network(images(2))
    assert logits.dtype == torch.float32
    assert features.dtype == wanted


def test_the_reference_is_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    prepare_for_inference(tiny(), CPU, "bfloat16")
    assert torch.backends.cudnn.allow_tf32
    prepare_for_inference(tiny(), CPU, "float32")
    assert not torch.backends.cudnn.allow_tf32


def test_bfloat16_logits_are_near_those_of_float32() -> None:
    batch = images(4)
    exact = prepare_for_inference(tiny(), CPU, "float32")(batch)[0]
    torch.testing.assert_close(exact, tiny()(batch)[0])
    near = prepare_for_inference(tiny(), CPU, "bfloat16")(batch)[0]
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shapes_of_its_tensors_are_known_without_it(backbone: str) -> None:
    with torch.device("meta"):
        state = VGGGAP(backbone, 5).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert BACKBONES[backbone].tensor_shapes(5) == shapes
