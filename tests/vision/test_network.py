"""VGG-GAP: shapes, names, normalization, precision, and where its weights may come from."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lesioncam.errors import InputError
from lesioncam.settings import BACKBONES
from lesioncam.storage.weights import load_backbone
from lesioncam.vision.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VGGGAP,
    native_precision,
    prepare_for_inference,
)
from tests.conftest import SHARED, needs_shared

IMAGENET_FILE = SHARED / "weights" / "vgg16_features_imagenet.safetensors"
CPU = torch.device("cpu")


def tiny(classes: int = 3, seed: int = 0) -> VGGGAP:
    torch.manual_seed(seed)
    return VGGGAP("tiny", classes).eval()


def images(count: int, side: int = 96, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def feature_tensors(network: VGGGAP) -> dict[str, Tensor]:
    """The backbone's tensors as torchvision's files name them."""
    state = network.features.state_dict()
    return {f"features.{name}": tensor.clone() for name, tensor in state.items()}


def same_features(first: VGGGAP, second: VGGGAP) -> bool:
    states = first.features.state_dict(), second.features.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def refusal(network: VGGGAP, weights: Path | str) -> str:
    """The message of a refused load, which must leave the network as it was."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_backbone(network, "tiny", str(weights))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    message = str(caught.value)
    assert message.startswith("--weights: ")
    assert "\n" not in message
    assert str(weights) in message
    return message


# Shapes and names


@pytest.mark.parametrize(
    ("backbone", "channels", "cells"), [("vgg16", 512, 10), ("vgg11", 512, 10), ("tiny", 64, 12)]
)
def test_shapes_at_the_input_side(backbone: str, channels: int, cells: int) -> None:
    side = BACKBONES[backbone].input_size
    network = VGGGAP(backbone, 5).eval()
    with torch.inference_mode():
        logits, features = network(torch.zeros(1, 3, side, side, dtype=torch.uint8))
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


def test_last_pooling_is_left_out() -> None:
    with torch.device("meta"):
        pools = [type(module) for module in VGGGAP("vgg16", 3).features].count(nn.MaxPool2d)
    assert pools == 4


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


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (124, 116, 104), (10, 200, 90)])
def test_uint8_pixels_are_normalized_by_hand(color: tuple[int, int, int]) -> None:
    network = tiny()
    seen: list[Tensor] = []
    network.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor(color, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 96, 96))
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip(color, IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    (pixels,) = seen
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
    for place in (0, 1):
        torch.testing.assert_close(together[place], torch.cat([one[place] for one in singles]))


# Loading weights


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
def test_weights_are_loaded_from_file(tmp_path: Path, ending: str, extra: bool) -> None:
    source, network = tiny(seed=1), tiny(seed=2)
    linear = network.linear.weight.clone()
    state = feature_tensors(source)
    if extra:
        state |= {"classifier.0.weight": torch.zeros(4, 4), "classifier.0.bias": torch.zeros(4)}
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert not same_features(network, source)
    load_backbone(network, "tiny", str(path))
    assert same_features(network, source)
    assert torch.equal(network.linear.weight, linear)
    assert network.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_bare_path_without_directory_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, network = tiny(seed=1), tiny(seed=2)
    save_file(feature_tensors(source), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    load_backbone(network, "tiny", "weights.safetensors")
    assert same_features(network, source)


@needs_shared
def test_imagenet_file_fits_vgg16() -> None:
    network = VGGGAP("vgg16", 3).eval()
    load_backbone(network, "vgg16", str(IMAGENET_FILE))
    with safe_open(IMAGENET_FILE, "pt") as file:
        names = set(file.keys())
        for name in ("features.0.weight", "features.14.bias", "features.28.weight"):
            assert torch.equal(network.state_dict()[name], file.get_tensor(name))
    assert names == {name for name in network.state_dict() if name.startswith("features.")}
    with torch.inference_mode():
        logits, features = network(images(1, 64))
    assert logits.isfinite().all()
    assert features.shape == (1, 512, 4, 4)
    # Trained filters answer to a pattern in few channels; random ones answer in about half.
    assert features.mean(dim=(0, 2, 3)).gt(0.5).float().mean() < 0.3


@needs_shared
def test_imagenet_file_does_not_fit_vgg11() -> None:
    network = VGGGAP("vgg11", 3)
    with pytest.raises(InputError, match=r"does not fit the backbone vgg11"):
        load_backbone(network, "vgg11", str(IMAGENET_FILE))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_missing_file_is_refused(tmp_path: Path, ending: str) -> None:
    assert "no such file" in refusal(tiny(), tmp_path / f"nowhere{ending}")


def changed_state(change: str) -> dict[str, Tensor]:
    state = feature_tensors(tiny(seed=1))
    match change:
        case "shape":
            state["features.9.bias"] = torch.zeros(5)
        case "missing":
            del state["features.9.bias"]
        case "added":
            state["features.12.weight"] = torch.zeros(64, 64, 3, 3)
        case "prefix":
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        case "empty":
            state = {}
    return state


@pytest.mark.parametrize("change", ["missing", "added", "prefix", "empty"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_other_names_are_refused(tmp_path: Path, ending: str, change: str) -> None:
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(changed_state(change), path)
    assert "does not fit the backbone tiny" in refused(tiny(), path)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_other_shapes_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(changed_state("shape"), path)
    assert "does not fit the backbone tiny" in refused(tiny(), path)


def refused(network: VGGGAP, path: Path) -> str:
    """As `refusal`, where tensors that did fit may have been copied already."""
    with pytest.raises(InputError) as caught:
        load_backbone(network, "tiny", str(path))
    assert str(caught.value).startswith(f"--weights: {path} ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Trap:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    weights, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    content = {**feature_tensors(tiny(seed=1)), "trap": Trap(sprung)}
    if how == "pickle":
        weights.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, weights)
    assert "tensors only" in refusal(tiny(), weights)
    assert not sprung.exists()
    torch.load(weights, weights_only=False) if how == "torch.save" else pickle.loads(
        weights.read_bytes()
    )
    assert sprung.exists()  # the trap does work on those who open it


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not tensors at all" * 10, bytes(1000)])
def test_damaged_file_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    assert "tensors only" in refusal(tiny(), path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {0: torch.zeros(3)}], ids=type
)
def test_file_that_is_no_mapping_of_names_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    refusal(tiny(), path)


@pytest.mark.parametrize(
    "name",
    [
        "VGG16_Weights.NO_SUCH",
        "NoSuch_Weights.IMAGENET1K_V1",
        "VGG16_Weights",
        "imagenet",
        "weights.bin",
        "a.b.c",
    ],
)
def test_unknown_weights_name_is_refused(name: str) -> None:
    message = refusal(tiny(), name)
    assert "VGG16_Weights.IMAGENET1K_V1" in message


class Transforms:
    mean = (0.1, 0.2, 0.3)
    std = (1.0, 2.0, 3.0)


def test_named_weights_bring_their_own_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    source, network = tiny(seed=1), tiny(seed=2)
    weights = torchvision.models.VGG16_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: feature_tensors(source))
    monkeypatch.setattr(weights, "transforms", property(lambda _: Transforms))
    load_backbone(network, "tiny", "VGG16_Weights.IMAGENET1K_FEATURES")
    assert same_features(network, source)
    assert network.mean.flatten().tolist() == pytest.approx(Transforms.mean)
    assert network.std.flatten().tolist() == pytest.approx(Transforms.std)


def test_failed_download_says_to_give_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", offline)
    message = refusal(tiny(), "VGG16_Weights.IMAGENET1K_V1")
    assert "no network" in message
    assert "local path" in message


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
    near = prepare_for_inference(tiny(), CPU, "bfloat16")(batch)[0]
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, atol=0.02, rtol=0.05)


def test_float32_preparation_does_not_change_logits() -> None:
    batch = images(2)
    plain = tiny()(batch)[0]
    torch.testing.assert_close(prepare_for_inference(tiny(), CPU, "float32")(batch)[0], plain)


def test_native_precision_of_the_cpu_is_one_that_torch_has() -> None:
    assert native_precision(CPU) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_native_precision_follows_the_gpus_generation(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert native_precision(torch.device("cuda")) == expected
