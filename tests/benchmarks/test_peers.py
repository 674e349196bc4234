import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.agreement import Outcome, compare, read_peer
from benchmarks.images import SIZES, write_images
from benchmarks.model import write_bundle
from benchmarks.process import run
from lesioncam.settings import CropRule
from lesioncam.storage.bundle import Bundle, load_bundle
from lesioncam.vision.classifier import (
    CropClassifier,
    Localizer,
    TwoStageClassifier,
    to_channels_first,
)
from lesioncam.vision.decode import decode
from lesioncam.vision.network import build_network

COUNT = 8

needs_daft = pytest.mark.skipif(
    importlib.util.find_spec("daft") is None, reason="needs daft: pip install '.[bench]'"
)
needs_grad_cam = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_grad_cam") is None,
    reason="needs grad-cam: pip install '.[bench]'",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("peers"), SIZES[0], COUNT)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("model") / "tiny")
    write_bundle(uri, "tiny", None)
    return uri


@pytest.fixture(scope="module")
def ours(images: Path, bundle: str) -> Outcome:
    """The predictions of the project's own code."""
    return found_by(load_bundle(bundle), images)


def found_by(loaded: Bundle, images: Path) -> Outcome:
    settings = loaded.settings
    paths = sorted(images.iterdir())
    decoded = [decode(path.read_bytes(), settings.canvas_size).canvas for path in paths]
    canvases = to_channels_first(torch.from_numpy(np.stack(decoded)))
    first, second = (
        build_network(settings, state).eval() for state in (loaded.stage1, loaded.stage2)
    )
    classifier = TwoStageClassifier(Localizer(settings, first), CropClassifier(settings, second))
    found = classifier(canvases)
    names = [path.name for path in paths]
    return Outcome(
        names, found.final.numpy(), found.localization.boxes.numpy() / settings.canvas_size
    )


@pytest.mark.parametrize(
    ("peer", "precision"),
    [
        pytest.param("dataloader", "float32", marks=needs_grad_cam),
        pytest.param("dataloader", "bfloat16", marks=needs_grad_cam),
        pytest.param("daft_udf", "float32", marks=needs_daft),
        pytest.param("daft_udf", "bfloat16", marks=needs_daft),
    ],
)
def test_a_peer_does_the_same_work(
    peer: str, precision: str, images: Path, bundle: str, ours: Outcome, tmp_path: Path
) -> None:
    output = tmp_path / "scores"
    run(
        "-m", f"benchmarks.peers.{peer}", "--images", str(images), "--bundle", bundle,
        "--output", str(output), "--precision", precision,
    )  # fmt: skip
    theirs = read_peer(output, load_bundle(bundle).settings.canvas_size)
    found = compare(ours, theirs)
    assert found.images == COUNT
    assert found.same_work, found


def test_the_model_distinguishes_images(ours: Outcome) -> None:
    assert ours.probabilities.std(axis=0).min() > 0.05
    assert len(np.unique(ours.boxes, axis=0)) > COUNT // 2


@pytest.mark.parametrize(
    "change",
    [
        lambda rule: replace(rule, threshold=0.7),
        lambda rule: replace(rule, padding=0.0),
        lambda rule: replace(rule, map="predicted"),
        lambda rule: replace(rule, context=0.0),
    ],
    ids=["threshold", "padding", "map", "context"],
)
def test_another_crop_rule_is_other_work(
    change: Callable[[CropRule], CropRule], images: Path, bundle: str, ours: Outcome
) -> None:
    loaded = load_bundle(bundle)
    settings = replace(loaded.settings, crop=change(loaded.settings.crop))
    assert not compare(ours, found_by(replace(loaded, settings=settings), images)).same_work


def test_pixels_that_are_not_normalized_are_other_work(
    images: Path, bundle: str, ours: Outcome
) -> None:
    loaded = load_bundle(bundle)
    mean, std = loaded.stage1["mean"], loaded.stage1["std"]
    plain = {"mean": torch.zeros_like(mean), "std": torch.ones_like(std)}
    without = replace(loaded, stage1={**loaded.stage1, **plain}, stage2={**loaded.stage2, **plain})
    assert not compare(ours, found_by(without, images)).same_work
