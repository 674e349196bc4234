"""The engines compute the same function; which one runs depends on the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lesioncam.errors import InputError
from lesioncam.settings import ModelSettings
from lesioncam.vision import engine, hardware
from lesioncam.vision.engine import load_network
from lesioncam.vision.hardware import cpu_features, has_openvino
from lesioncam.vision.network import VGGGAP, build_network
from lesioncam.vision.ranges import activation_ranges
from tests.conftest import SHARED, needs_shared

CPU = torch.device("cpu")

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="needs OpenVINO")
needs_vnni = pytest.mark.skipif(
    not cpu_features() & hardware._INT8_FEATURES, reason="needs a CPU with VNNI or AMX"
)


def have_features(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    """Pretend that the CPU has these instruction sets and no others."""
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset(features))


@pytest.fixture
def reference(model_settings: ModelSettings) -> VGGGAP:
    torch.manual_seed(0)
    return build_network(model_settings).eval()


def images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@needs_openvino
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("size", [96, 80])
def test_openvino_computes_what_torch_does(
    model_settings: ModelSettings, reference: VGGGAP, count: int, size: int
) -> None:
    loaded = load_network(model_settings, reference.state_dict(), CPU, "float32")
    assert not isinstance(loaded, VGGGAP)
    assert torch.equal(loaded.class_weights, reference.class_weights)
    with torch.inference_mode():
        channels_last = images(count, size).contiguous(memory_format=torch.channels_last)
        for found, expected in zip(loaded(channels_last), reference(channels_last), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_openvino
def test_bfloat16_is_near(
    model_settings: ModelSettings, reference: VGGGAP, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_features(monkeypatch, "avx512_bf16")
    loaded = load_network(model_settings, reference.state_dict(), CPU, "bfloat16")
    with torch.inference_mode():
        logits, features = loaded(images(4, 96))
        torch.testing.assert_close(logits, reference(images(4, 96))[0], atol=0.02, rtol=0.05)
    assert features.dtype == torch.float32


@needs_openvino
def test_results_stay_when_the_next_batch_is_computed(
    model_settings: ModelSettings, reference: VGGGAP
) -> None:
    loaded = load_network(model_settings, reference.state_dict(), CPU, "float32")
    _, features = loaded(images(2, 96))
    before = features.clone()
    loaded(255 - images(2, 96))
    assert torch.equal(features, before)


def test_torch_runs_where_openvino_is_missing(
    model_settings: ModelSettings, reference: VGGGAP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_openvino", lambda: False)
    loaded = load_network(model_settings, reference.state_dict(), CPU, "float32")
    assert isinstance(loaded, VGGGAP)
    assert not loaded.training


# int8


def quantized_features(network: VGGGAP, images: Tensor, ranges: Sequence[float]) -> Tensor:
    """What int8 gives, in float32: each convolution but the first takes and has rounded values."""
    values, remaining = network.normalize(images), iter(ranges)
    is_first = True
    for module in network.features:
        if isinstance(module, nn.Conv2d) and not is_first:
            scale = next(remaining) / 255
            values = (values / scale).round().clamp(0, 255) * scale
            scales = module.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
            weight = (module.weight / scales).round() * scales
            values = F.conv2d(values, weight, module.bias, padding=1)
        else:
            is_first &= not isinstance(module, nn.Conv2d)
            values = module(values)
    return values


def quantized_by_openvino(network: VGGGAP, images: Tensor, ranges: Sequence[float]) -> Tensor:
    """What the model for int8 gives where OpenVINO rounds as it says, and computes in float32."""
    import openvino

    from lesioncam.vision.openvino_network import convolutions

    options = {"LP_TRANSFORMS_MODE": False, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(convolutions(network, ranges), "CPU", options)
    return torch.from_numpy(model({0: images.numpy()})[0].copy())


@needs_openvino
def test_the_model_for_int8_rounds_weights_and_activations(reference: VGGGAP) -> None:
    with torch.inference_mode():
        for module in reference.features:
            if isinstance(module, nn.Conv2d):
                module.weight *= torch.linspace(0.5, 2, len(module.weight)).view(-1, 1, 1, 1)
                nn.init.constant_(cast("Tensor", module.bias), 0.1)
        # A quarter of the largest activation of one layer: clipping is part of it.
        first, *others = activation_ranges(reference, images(4, 96))
        ranges = (first / 4, *others)
        expected = quantized_features(reference, images(4, 96), ranges)
        exact = reference(images(4, 96))[1]
        found = quantized_by_openvino(reference, images(4, 96), ranges)
    # A value between two levels may be rounded to either, as sums are made in another order.
    step = (found - expected).abs()
    assert step.quantile(0.99) < 1e-3 * expected.max()
    assert step.max() < 0.02 * expected.max()
    assert (found - exact).abs().max() > 0.05 * exact.max()


@needs_openvino
def test_a_channel_without_weights_stays_what_it_is(reference: VGGGAP) -> None:
    with torch.inference_mode():
        reference.features.get_parameter("3.weight")[5] = 0
        ranges = activation_ranges(reference, images(1, 96))
        found = quantized_by_openvino(reference, images(1, 96), ranges)
    assert found.isfinite().all()


@needs_vnni
@needs_openvino
def test_int8_is_near(model_settings: ModelSettings, reference: VGGGAP) -> None:
    ranges = activation_ranges(reference, images(4, 96))
    loaded = load_network(model_settings, reference.state_dict(), CPU, "int8", ranges)
    with torch.inference_mode():
        _, features = loaded(images(4, 96))
        expected = quantized_features(reference, images(4, 96), ranges)
    assert (features - expected).abs().quantile(0.99) < 0.01 * expected.max()


@needs_openvino
@needs_shared
def test_int8_of_a_vgg16_is_near_float32_on_real_images(model_settings: ModelSettings) -> None:
    """By the model's own arithmetic, whatever this CPU has."""
    network = VGGGAP("vgg16", 3).eval()
    weights = load_file(SHARED / "weights/vgg16_features_imagenet.safetensors")
    network.features.load_state_dict(
        {name.removeprefix("features."): tensor for name, tensor in weights.items()}
    )

    def photos(part: str, count: int) -> Tensor:
        names = sorted(Path(SHARED, "isic2017/images_256", part).glob("*.jpg"))
        some = names[:: len(names) // count]
        chosen = [np.asarray(Image.open(name).resize((64, 64))) for name in some]
        return torch.from_numpy(np.stack(chosen[:count])).permute(0, 3, 1, 2).contiguous()

    with torch.inference_mode():
        ranges = activation_ranges(network, photos("train", 16))
        logits, expected = network(photos("val", 4))
        found = quantized_by_openvino(network, photos("val", 4), ranges)
        quantized = network.linear(found.mean(dim=(2, 3)))
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([quantized.flatten(), logits.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("device", "features", "has_engine", "with_ranges", "message"),
    [
        ("cuda", ["avx512_vnni"], True, True, "int8 runs on CPUs only; use --gpus 0"),
        ("cpu", ["avx2"], True, True, "int8 needs OpenVINO and a CPU with VNNI or AMX"),
        ("cpu", ["avx512_vnni"], False, True, "int8 needs OpenVINO and a CPU with VNNI or AMX"),
        ("cpu", ["avx512_vnni"], True, False, "the bundle has no activation ranges"),
    ],
)
def test_int8_is_refused_where_it_is_not_there(
    model_settings: ModelSettings,
    reference: VGGGAP,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    features: list[str],
    has_engine: bool,
    with_ranges: bool,
    message: str,
) -> None:
    have_features(monkeypatch, *features)
    monkeypatch.setattr(hardware, "has_openvino", lambda: has_engine)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    ranges = (1.0, 1.0, 1.0) if with_ranges else ()
    with pytest.raises(InputError, match=f"^--precision: {message}"):
        load_network(model_settings, reference.state_dict(), torch.device(device), "int8", ranges)


def test_bfloat16_is_refused_on_a_cpu_without_it(
    model_settings: ModelSettings, reference: VGGGAP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would compute in float32 there, and the run would record bfloat16."""
    have_features(monkeypatch, "avx2")
    with pytest.raises(InputError, match=r"^--precision: .* does not compute in bfloat16"):
        load_network(model_settings, reference.state_dict(), CPU, "bfloat16")
