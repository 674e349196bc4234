"""The engines compute the same function; which one runs depends on the device."""

import pytest
import torch
from torch import Tensor

from lesioncam.settings import ModelSettings
from lesioncam.vision import engine
from lesioncam.vision.engine import load_network
from lesioncam.vision.network import VGGGAP, build_network

CPU = torch.device("cpu")

needs_openvino = pytest.mark.skipif(not engine.has_openvino(), reason="needs OpenVINO")


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
def test_bfloat16_is_near(model_settings: ModelSettings, reference: VGGGAP) -> None:
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
