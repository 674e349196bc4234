"""Weights of a backbone: from files of tensors or by torchvision's name; what is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lesioncam.errors import InputError
from lesioncam.storage.weights import check_weights, load_backbone
from lesioncam.vision.network import IMAGENET_MEAN, VGGGAP
from tests.conftest import SHARED, needs_shared

IMAGENET_FILE = SHARED / "weights" / "vgg16_features_imagenet.safetensors"


def tiny(seed: int = 0) -> VGGGAP:
    torch.manual_seed(seed)
    return VGGGAP("tiny", 3).eval()


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
        pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        logits, features = network(pixels)
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


@pytest.mark.parametrize("change", ["missing", "added", "prefix", "empty", "shape"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_other_names_or_shapes_are_refused(tmp_path: Path, ending: str, change: str) -> None:
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(changed_state(change), path)
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
    assert "holds more than tensors; save only its state_dict()" in refusal(tiny(), weights)
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
    assert "holds more than tensors; save only its state_dict()" in refusal(tiny(), path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {0: torch.zeros(3)}], ids=type
)
def test_file_that_is_no_mapping_of_names_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert "is not a state dict; save one with torch.save(" in refusal(tiny(), path)


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


# Before anything is read or downloaded


@pytest.mark.parametrize(
    ("weights", "backbone"),
    [
        ("VGG16_Weights.IMAGENET1K_V1", "vgg16"),
        ("VGG16_Weights.DEFAULT", "vgg16"),
        ("VGG11_Weights.IMAGENET1K_V1", "vgg11"),
        ("s3://bucket/weights.safetensors", "tiny"),
    ],
)
def test_weights_that_may_fit_pass(weights: str, backbone: str) -> None:
    check_weights(weights, backbone)


@pytest.mark.parametrize(
    ("weights", "backbone"),
    [
        ("ResNet50_Weights.DEFAULT", "vgg16"),
        ("VGG11_Weights.IMAGENET1K_V1", "vgg16"),
        ("VGG16_BN_Weights.IMAGENET1K_V1", "vgg16"),
        ("VGG16_Weights.IMAGENET1K_V1", "tiny"),
    ],
)
def test_weights_of_another_network_are_refused(weights: str, backbone: str) -> None:
    with pytest.raises(InputError, match=f"--weights: {weights} is for another .* made for"):
        check_weights(weights, backbone)


def test_a_name_that_torchvision_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="--weights: 'vgg16' is neither"):
        check_weights("vgg16", "vgg16")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights: no such file"):
        check_weights(f"{tmp_path}/nowhere.pth", "vgg16")
