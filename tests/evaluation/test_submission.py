from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest

from lesioncam.columns import probability_columns
from lesioncam.errors import InputError
from lesioncam.evaluation.submission import check_submission, write_submission
from lesioncam.vision.metrics import mean_auc
from tests.conftest import CLASSES

ROWS = pd.DataFrame(
    {
        "image_id": ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"],
        "label": [0, 1, 2],
        "p_melanoma": np.array([0.12512, 0.0, 1e-5], np.float32),
        "p_seborrheic_keratosis": np.array([0, 1, 1], np.float32),
        "p_nevus": np.array([0.87488, 0, 0], np.float32),
    }
)
EXPECTED = (
    "image,melanoma,seborrheic_keratosis\n"
    "ISIC_0000001,0.12512,0.0\n"
    "ISIC_0000002,0.0,1.0\n"
    "ISIC_0000003,1e-05,1.0\n"
)


def test_the_file_has_the_columns_of_the_ground_truth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("submission.csv", "new/submission.csv", f"{tmp_path}/a b.csv"):
        check_submission(uri)
        write_submission(uri, ROWS, CLASSES[:2], missing=0)
        assert (tmp_path / uri).read_text() == EXPECTED
    write_submission(f"file://{tmp_path}/c%20d.csv", ROWS, CLASSES, missing=0)
    assert pd.read_csv(tmp_path / "c d.csv").columns.tolist() == ["image", *CLASSES]
    assert not caplog.text


def test_the_file_may_be_an_object(bucket: str) -> None:
    for key in ("submission.csv", "top/submission.csv"):
        write_submission(f"s3://{bucket}/{key}", ROWS, CLASSES[:2], missing=0)
        written = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        assert written.decode() == EXPECTED


def test_images_without_a_row_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_submission(f"{tmp_path}/s.csv", ROWS, CLASSES[:2], missing=2)
    assert (
        "--submission: 2 of the 5 labeled images failed or are not in the scores and have no row; "
        "the scorer refuses a file without them"
    ) in caplog.text


@pytest.mark.parametrize(
    "uri", ["submission", "out/", "scores/x.parquet", "s3://x.csv", "ftp://a.csv"]
)
def test_what_names_no_csv_file_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"--submission: .* should be a \.csv file"):
        check_submission(uri)


@pytest.mark.filterwarnings("ignore:::isic_challenge_scoring")
def test_the_official_scorer_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader accepts the file, and its AUCs are ours."""
    scoring = pytest.importorskip(
        "isic_challenge_scoring", reason="needs isic-challenge-scoring, which pip installs"
    )
    # Version 5.6 calls what pandas 3 has under another name.
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)
    labels = np.arange(60) % 3
    random = np.random.default_rng(0)
    raw = (np.eye(3)[labels] + random.random((60, 3))).astype(np.float32)
    rows = pd.DataFrame(raw / raw.sum(axis=1, keepdims=True), columns=probability_columns(CLASSES))
    rows["image_id"] = [f"ISIC_{number:07d}" for number in range(60)]
    truth = pd.DataFrame({"image": rows["image_id"]})
    for k, name in enumerate(CLASSES[:2]):
        truth[name] = (labels == k).astype(float)
    truth.to_csv(tmp_path / "truth.csv", index=False)
    write_submission(f"{tmp_path}/submission.csv", rows, CLASSES[:2], missing=0)
    with (tmp_path / "truth.csv").open() as expected, (tmp_path / "submission.csv").open() as given:
        score = scoring.ClassificationScore.from_stream(
            expected, given, scoring.ClassificationMetric.AUC
        )
    probabilities = rows[probability_columns(CLASSES)].to_numpy(np.float64)
    assert score.overall == pytest.approx(mean_auc(probabilities, labels, [0, 1]))
