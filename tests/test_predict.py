"""Predict: rows of paths, bytes, PIL images and arrays; without Ray."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.predict import Classifier, _device, load
from lesioncam.schema import scores_schema
from tests.conftest import CLASSES
from tests.messy import lesion

SOURCE = ["uri", "image_id", "size", "etag", "last_modified"]
PROVENANCE = ["run_id", "scored_at"]


@pytest.fixture(scope="module")
def classifier(bundle_uri: str) -> Classifier:
    return load(bundle_uri, "float32")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def results(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=[*SOURCE, *PROVENANCE]).reset_index(drop=True)


def test_every_input_type_gives_the_same_numbers(classifier: Classifier, tmp_path: Path) -> None:
    image = lesion(96, 72)
    path = tmp_path / "lesion.png"
    path.write_bytes(png(image))
    inputs: list[Any] = [path, str(path), path.as_uri(), png(image), image, np.asarray(image)]
    rows = classifier.predict(inputs)
    for row in range(1, len(inputs)):
        pd.testing.assert_frame_equal(results(rows[:1]), results(rows[row : row + 1]))
    assert list(rows["image_id"][:3]) == ["lesion"] * 3
    assert list(rows["size"][:4]) == [path.stat().st_size] * 4
    assert rows.loc[3:, ["uri", "image_id", "etag", "last_modified"]].isna().all(axis=None)


def test_a_batch_gives_the_numbers_of_single_images(classifier: Classifier) -> None:
    images = [lesion(96, 72, seed) for seed in range(5)]
    together = classifier.predict(images)
    alone = pd.concat([classifier.predict(image) for image in images], ignore_index=True)
    pd.testing.assert_frame_equal(results(together), results(alone))
    array = np.stack([np.asarray(image) for image in images])
    pd.testing.assert_frame_equal(results(classifier.predict(array)), results(together))


def test_gray_arrays_and_orientation(classifier: Classifier) -> None:
    gray = lesion(96, 72).convert("L")
    rows = classifier.predict([np.asarray(gray), png(gray)])
    pd.testing.assert_frame_equal(results(rows[:1]), results(rows[1:]))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    lesion(96, 72).save(buffer, "PNG", exif=exif)
    upright = classifier.predict(Image.open(buffer))
    assert (upright["width"][0], upright["height"][0]) == (72, 96)


def test_failed_images_are_rows_in_their_order(classifier: Classifier, tmp_path: Path) -> None:
    cut = Image.open(io.BytesIO(png(lesion(96, 72))[:2000]))
    rows = classifier.predict([b"", tmp_path / "gone.jpg", lesion(96, 72), b"text", cut])
    kinds = ["empty", "not_found", None, "not_an_image", "truncated"]
    assert [kind if isinstance(kind, str) else None for kind in rows["error_kind"]] == kinds
    assert list(rows["status"]) == ["failed", "failed", "ok", "failed", "failed"]
    assert rows.loc[rows["status"] == "failed", "error"].str.len().gt(5).all()


def test_no_images_give_no_rows(classifier: Classifier) -> None:
    rows = classifier.predict([])
    assert list(rows.columns) == scores_schema(CLASSES).names
    assert (len(rows), str(rows["box_x0"].dtype)) == (0, "Int32")


def test_an_iterable_is_read_in_blocks(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.predict._BLOCK", 3)
    read, read_when_scored = 0, list[int]()
    score_block = Classifier._score

    def images() -> Iterator[Image.Image]:
        nonlocal read
        for seed in range(8):
            read += 1
            yield lesion(32, 24, seed)

    def watched(*args: Any) -> Any:
        read_when_scored.append(read)
        return score_block(*args)

    monkeypatch.setattr(Classifier, "_score", watched)
    assert len(classifier.predict(images())) == 8
    assert read_when_scored == [3, 6, 8]


def test_an_object_of_a_bucket_has_its_etag(classifier: Classifier, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a b/1.png", Body=png(lesion(96, 72)))
    rows = classifier.predict(f"s3://{bucket}/a b/1.png")
    assert rows["status"][0] == "ok"
    assert rows["uri"][0] == f"s3://{bucket}/a b/1.png"
    assert rows["etag"].notna().all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, r"images\[0\]: expected a path, an s3:// URI, bytes, .* got int"),
        ([b"", None], r"images\[1\]: .* got NoneType"),
        (np.zeros((4, 4, 3)), r"got an array of float64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"got an array of uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"got an array of uint8 \(0, 4\)"),
        ("https://example.org/a.jpg", r"images\[0\]: .* is neither a path nor s3://bucket/key"),
    ],
)
def test_other_types_are_refused_in_one_line(
    classifier: Classifier, image: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        classifier.predict(image)
    assert "\n" not in str(error.value)


def test_a_directory_is_refused_with_the_way_to_list_it(
    classifier: Classifier, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"is a directory; pass its files, for example sorted\("):
        classifier.predict(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone",), r"bundle: \S+/gone/bundle.json"),
        (("gone", "float16"), "precision: expected one of auto, float32, bfloat16, int8, got"),
        (("gone", "auto", "tpu"), "device: expected one of cpu, cuda, or cuda:N, got 'tpu'"),
        (("gone", "auto", "cpu:x"), "device: expected one of cpu, cuda, or cuda:N, got 'cpu:x'"),
        (("gone", "auto", 7.5), "device: expected one of cpu, cuda, or cuda:N, got '7.5'"),
    ],
)
def test_load_refuses_what_it_cannot_use(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(*arguments)


def test_prediction_never_imports_ray(bundle_uri: str) -> None:
    code = f"""
import sys
from lesioncam.predict import load
load({bundle_uri!r}).predict(b"no image")
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda:2", torch.device("cuda", 9)):
        with pytest.raises(InputError, match=f"device: torch can use 2 here, got '{device}'"):
            load("gone", device=device)
    assert _device(torch.device("cuda:1")) == _device("cuda:1") == torch.device("cuda", 1)
    assert _device(None) == torch.device("cuda")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"caf\xe9.jpg".decode(errors="surrogateescape"), "the name is not UTF-8; rename"),
        (Path("s3://bucket/a.jpg"), "s3:/bucket/a.jpg has one slash after s3:"),
        ("", "the value is empty"),
    ],
)
def test_a_path_that_names_no_image_is_refused(
    classifier: Classifier, image: str | Path, message: str
) -> None:
    with pytest.raises(InputError, match=f"^images\\[1\\]: {message}"):
        classifier.predict(["gone.jpg", image])


def test_an_error_of_the_precision_names_the_keyword(bundle_uri: str) -> None:
    with pytest.raises(InputError, match=r"^precision: the bundle has no activation ranges"):
        load(bundle_uri, "int8", "cpu")
