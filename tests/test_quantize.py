"""Quantize: a bundle gets what int8 needs, with the weights as they were."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lesioncam import quantize
from lesioncam.cli import main
from lesioncam.columns import ErrorKind
from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.bundle import STAGES, load_bundle, read_bundle
from lesioncam.storage.lease import LEASE_FILE
from lesioncam.storage.store import StoreError
from lesioncam.vision.classifier import Localizer, to_channels_first, whole_boxes
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.decode import decode_image
from lesioncam.vision.network import build_network
from lesioncam.vision.ranges import activation_ranges, widest_ranges
from tests.messy import write_lesions
from tests.training.small import hold_lease


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_lesions(tmp_path / "images", 18)
    return tmp_path / "images"


def test_a_bundle_gets_the_ranges_of_both_stages(
    images: Path, bundle_uri: str, tmp_path: Path
) -> None:
    output = tmp_path / "int8"
    done = quantize(bundle_uri, images, output)
    before, after = read_bundle(bundle_uri), read_bundle(str(output))
    assert done == {"bundle": str(output), "model": after.digest, "images": 18}
    assert after.digest != before.digest
    assert (after.weights, after.settings, after.card) == (
        before.weights,
        before.settings,
        before.card,
    )
    bundle = before.load()
    stage1, stage2 = (
        build_network(bundle.settings, state).eval() for state in (bundle.stage1, bundle.stage2)
    )
    size = bundle.settings.input_size
    expected: tuple[list[tuple[float, ...]], ...] = ([], [])
    for path in sorted(images.iterdir()):
        canvas = decode_image(Image.open(path), bundle.settings.canvas_size).canvas
        batch = to_channels_first(torch.from_numpy(canvas.copy())[None])
        crops = Localizer(bundle.settings, stage1)(batch).crops
        expected[0].append(activation_ranges(stage1, sample_boxes(batch, whole_boxes(batch), size)))
        expected[1].append(activation_ranges(stage2, crops))
    assert after.quantization is not None
    for stage, ranges in zip(STAGES, expected, strict=True):
        found = getattr(after.quantization, stage)
        assert found == pytest.approx(widest_ranges(ranges), rel=1e-4)


def test_files_that_cannot_be_read_are_counted_and_few_images_are_reported(
    images: Path, bundle_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "empty.jpg").touch()
    with caplog.at_level(logging.WARNING, "lesioncam"):
        assert quantize(bundle_uri, images, tmp_path / "int8")["images"] == 18
    assert "images: 1 images cannot be used: 1 empty" in caplog.text
    assert "18 images; on fewer than 100, the ranges may be too narrow" in caplog.text


def test_at_most_so_many_images_are_read_evenly_spaced(
    images: Path, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.quantization.RANGE_IMAGES", 6)
    assert quantize(bundle_uri, images, tmp_path / "int8")["images"] == 6


def test_the_verb_prints_the_new_model(
    images: Path, bundle_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "int8")
    flags = ["--bundle", bundle_uri, "--images", str(images), "--output", output]
    assert main(["quantize", *flags]) == 0
    printed = capsys.readouterr().out
    model = json.loads((tmp_path / "int8" / "bundle.json").read_text())["digest"]
    assert printed == f"ranges measured on 18 images\nbundle: {output} (model {model[:12]})\n"


def test_the_rest_of_the_bundle_goes_along(images: Path, bundle_uri: str, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(bundle_uri, trained)
    (trained / "metrics.csv").write_text("stage\n")
    quantize(trained, images, tmp_path / "int8")
    assert (tmp_path / "int8" / "metrics.csv").read_text() == "stage\n"
    assert not (tmp_path / "int8" / "curves.png").exists()
    facts = load_bundle(str(tmp_path / "int8")).training["quantized"]
    assert facts == {"model": read_bundle(bundle_uri).digest, "images": 18}


def test_images_out_of_reach_and_a_run_in_the_output_are_no_bundle(
    images: Path, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "int8"
    hold_lease(output, "another run")
    with pytest.raises(InputError, match=r"^output: .* is being written by run another run"):
        quantize(bundle_uri, images, output)
    (output / LEASE_FILE).unlink()
    gone = StoreError(ErrorKind.UNREACHABLE, "no answer")
    monkeypatch.setattr("lesioncam.quantization.read_canvas", lambda *_: gone)
    with pytest.raises(RunFailedError, match=r"^images: 18 images could not be fetched"):
        quantize(bundle_uri, images, output)
    assert not (output / "bundle.json").exists()


def test_bad_input_writes_nothing(images: Path, bundle_uri: str, tmp_path: Path) -> None:
    output = tmp_path / "int8"
    with pytest.raises(InputError, match=r"^output: .* holds a bundle; name another directory"):
        quantize(bundle_uri, images, bundle_uri)
    with pytest.raises(InputError, match=r"^bundle: .*bundle\.json"):
        quantize(tmp_path / "gone", images, output)
    with pytest.raises(InputError, match=r"^images: no such directory"):
        quantize(bundle_uri, tmp_path / "gone", output)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").touch()
    with pytest.raises(InputError, match=r"^images: none of 1 images in .* can be decoded"):
        quantize(bundle_uri, tmp_path / "empty", output)
    assert not output.exists() or not list(output.iterdir())
    assert load_bundle(bundle_uri).quantization is None
