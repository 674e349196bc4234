import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lesioncam.columns import BOX_COLUMNS, probability_columns
from lesioncam.errors import InputError
from lesioncam.evaluation import overlays
from lesioncam.evaluation.evaluate import EvaluateRequest, evaluate, read_labeled
from lesioncam.evaluation.localization import localization
from lesioncam.evaluation.overlays import overlay
from lesioncam.schema import scores_schema
from lesioncam.storage.labels import read_labels
from lesioncam.storage.results import SUCCESS, Results
from lesioncam.vision.decode import DecodeError
from tests.conftest import CLASSES
from tests.messy import lesion

LABELS = np.arange(30) % 3


def score_rows(folder: Path, count: int = 30) -> pa.Table:
    """Rows as scoring writes them; image i is of class i % 3 and mostly recognized."""
    random = np.random.default_rng(0)
    cam = np.zeros((4, 4), np.uint8)
    cam[2, 1] = 255
    columns: dict[str, list[Any]] = {name: [] for name in scores_schema(CLASSES).names}
    for number in range(count):
        row: dict[str, Any] = {
            "uri": str(folder / f"{number:03d}.jpg"),
            "image_id": f"{number:03d}",
            "status": "ok",
            "prediction": CLASSES[number % 3],
            "width": 320,
            "height": 240,
            **dict(zip(BOX_COLUMNS, (64, 96, 192, 192), strict=True)),
            "cam_flat": False,
            "cam": cam.tobytes(),
            "quality": [],
            "scored_at": datetime.now(UTC),
            "model": "m",
        }
        for stage in ("final", "stage1", "stage2"):
            raw = np.eye(3)[number % 3] + random.random(3)
            row |= dict(zip(probability_columns(CLASSES, stage), raw / raw.sum(), strict=True))
        for name, values in columns.items():
            values.append(row.get(name))
    return pa.table(columns, schema=scores_schema(CLASSES))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        lesion(320, 240, number).save(folder / f"{number:03d}.jpg")
    results = Results(str(tmp_path / "scores"))
    results.write_part("part-a.parquet", score_rows(folder).slice(0, 20))
    results.write_part("part-b.parquet", score_rows(folder).slice(20))
    results.succeed()
    return tmp_path / "scores"


def write_labels(path: Path, numbers: list[int]) -> str:
    frame = pd.DataFrame({"image_id": [f"{number:03d}" for number in numbers]})
    for k, name in enumerate(CLASSES[:2]):
        frame[name] = [float(number % 3 == k) for number in numbers]
    frame.to_csv(path, index=False)
    return str(path)


def request(scores: Path, labels: str, **changes: Any) -> EvaluateRequest:
    return EvaluateRequest(str(scores), labels, changes.pop("output", None), "nevus", **changes)


def test_figures_and_markdown_are_written(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    content, markdown, where = evaluate(request(scores, labels))
    assert where == str(scores / "_evaluation")
    written = json.loads((scores / "_evaluation" / "evaluation.json").read_text())
    assert written == content
    for stage in ("stage1", "stage2", "final"):
        assert set(written[stage]) == {*CLASSES, "mean"}
        assert {"auc", "low", "high", "n", "positives"} <= set(written[stage]["melanoma"])
    assert set(written["gain"]) == {"auc", "low", "high"}
    assert (scores / "_evaluation" / "evaluation.md").read_text() == markdown
    assert len(pd.read_parquet(scores)) == 30  # what evaluate writes does not disturb reading


def test_mean_is_over_the_classes_with_a_column(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    content, markdown, _ = evaluate(request(scores, labels))
    final = content["final"]
    both = (final["melanoma"]["auc"] + final["seborrheic_keratosis"]["auc"]) / 2
    assert final["mean"]["auc"] == pytest.approx(both)
    assert "| mean (melanoma, seborrheic_keratosis) |  |" in markdown


@pytest.mark.parametrize("complete", [True, False])
def test_images_that_do_not_match_are_counted(
    scores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, complete: bool
) -> None:
    results = Results(str(scores))
    failed = score_rows(tmp_path / "broken", 2).to_pandas()
    failed["status"], failed["image_id"] = "failed", ["x", "y"]
    results.write_part("part-d.parquet", pa.Table.from_pandas(failed, scores_schema(CLASSES)))
    if not complete:
        results.store.delete(SUCCESS)
    labels = write_labels(tmp_path / "labels.csv", [*range(12), 900])
    assert evaluate(request(scores, labels))[0]["images"] == {
        "evaluated": 12,
        "images_without_label": 18,
        "labels_without_image": 1,
        "failed_images": 2,
    }
    warning = "--scores: no _SUCCESS file: the scoring run has not finished, rows may be missing"
    assert (warning in caplog.text) != complete


def test_the_newest_row_of_an_image_counts_while_a_run_is_under_way(
    scores: Path, tmp_path: Path
) -> None:
    results = Results(str(scores))
    results.begin()
    newer = score_rows(tmp_path / "images").slice(2, 3).to_pandas()  # images 2, 3 and 4
    newer["prediction"] = "nevus"
    newer.loc[[0, 2], "status"] = "failed"
    results.write_part("part-c.parquet", pa.Table.from_pandas(newer, scores_schema(CLASSES)))
    labels = read_labels(write_labels(tmp_path / "labels.csv", [2, 3, 8, 900]), "nevus")
    rows, counts = read_labeled(results, labels, CLASSES)
    assert rows["image_id"].tolist() == ["003", "008"]
    assert rows["prediction"].tolist() == ["nevus", "nevus"]
    assert rows["label"].tolist() == [0, 2]
    assert counts == {
        "evaluated": 2,
        "images_without_label": 26,
        "labels_without_image": 2,
        "failed_images": 2,
    }


@pytest.mark.parametrize("status", ["ok", "failed"])
def test_a_label_that_could_be_of_several_images_is_refused(
    scores: Path, tmp_path: Path, status: str
) -> None:
    others = score_rows(tmp_path / "elsewhere", 2).to_pandas().assign(status=status)
    others.loc[1, "image_id"] = "unlabeled"
    table = pa.Table.from_pandas(others, scores_schema(CLASSES))
    Results(str(scores)).write_part("part-c.parquet", table)
    labels = write_labels(tmp_path / "labels.csv", list(range(12)))
    with pytest.raises(InputError, match="--labels: 1 of its ids are the image_id of several"):
        evaluate(request(scores, labels))
    assert not (scores / "_evaluation").exists()
    labels = write_labels(tmp_path / "labels.csv", list(range(1, 12)))  # without the id in question
    assert evaluate(request(scores, labels))[0]["images"]["evaluated"] == 11


def test_labels_as_class_names_are_compared_with_scores(scores: Path, tmp_path: Path) -> None:
    marked = write_labels(tmp_path / "labels.csv", list(range(30)))
    names = [CLASSES[number % 3] for number in range(30)]
    frame = pd.DataFrame({"file": [f"{number:03d}" for number in range(30)], "kind": names})
    frame.assign(age=50).to_csv(tmp_path / "names.csv", index=False)
    named = request(scores, f"{tmp_path}/names.csv", id_column="file", class_column="kind")
    content, expected = evaluate(named)[0], evaluate(request(scores, marked))[0]
    for name in CLASSES:
        assert content["final"][name] == expected["final"][name]


def test_an_empty_class_that_the_model_lacks_is_no_difference(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    pd.read_csv(labels, dtype=str).assign(UNK=0).to_csv(tmp_path / "unk.csv", index=False)
    expected = evaluate(request(scores, labels))[0]
    assert evaluate(request(scores, f"{tmp_path}/unk.csv"))[0] == expected


def test_an_undefined_figure_is_null(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 2, 3, 5])  # no seborrheic keratosis
    content = evaluate(request(scores, labels))[0]
    assert content["final"]["seborrheic_keratosis"]["auc"] is None
    assert content["final"]["mean"]["auc"] is None
    assert content["gain"]["auc"] is None
    assert content["final"]["melanoma"]["auc"] is not None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["image_id", "melanoma"], "are not those of the model"),
        (["image_id", "melanoma", "wart"], "are not those of the model"),
    ],
)
def test_labels_of_other_classes_are_refused(
    scores: Path, tmp_path: Path, columns: list[str], message: str
) -> None:
    frame = pd.DataFrame({"image_id": ["000", "001", "002"], "melanoma": [1, 0, 0]})
    frame["wart"] = [0, 1, 0]
    frame[columns].to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match=message):
        evaluate(request(scores, str(tmp_path / "labels.csv")))
    assert not (scores / "_evaluation").exists()


def test_no_scores_and_no_match_are_refused(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", [900, 901])
    with pytest.raises(InputError, match="none of its 2 ids is an image_id of the 30 "):
        evaluate(request(scores, labels))
    with pytest.raises(InputError, match="--scores: no Parquet in"):
        evaluate(request(tmp_path / "images", labels))


def test_overlays_are_pairs_of_images(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 1, 2])
    evaluate(request(scores, labels, overlays=3))
    with Image.open(scores / "_evaluation" / "overlays.png") as sheet:
        assert sheet.size == (3 * 2 * 224, 224 + 32)
        assert sheet.convert("RGB").getpixel((round(64 / 320 * 224), 120)) == (255, 255, 255)
        captions = np.asarray(sheet.convert("L"))[224:, : 2 * 224]
    assert (captions[:16].min(), captions[16:].min()) < (100, 100)  # the id, and what it shows


def test_many_overlays_are_pages(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "_PAGE", 6)
    labels = write_labels(tmp_path / "labels.csv", list(range(15)))
    output = tmp_path / "evaluation"
    output.mkdir()
    (output / "overlays-of-mine.png").touch()
    (output / "overlays-017.png").touch()
    evaluate(request(scores, labels, overlays=2000, output=str(output)))
    heights = {}
    for path in output.glob("overlays*.png"):
        if path.stat().st_size:
            with Image.open(path) as page:
                heights[path.name] = page.height // 256
    assert heights == {"overlays.png": 2, "overlays-002.png": 2, "overlays-003.png": 1}
    evaluate(request(scores, labels, overlays=6, output=str(output)))
    names = sorted(path.name for path in output.glob("overlays*.png"))
    assert names == ["overlays-of-mine.png", "overlays.png"]


def test_a_masks_outline_is_drawn(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 1])
    mask = np.zeros((240, 320), np.uint8)
    mask[60:180, 80:240] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "000_segmentation.png")
    evaluate(request(scores, labels, overlays=2, masks=str(tmp_path / "masks")))
    with Image.open(scores / "_evaluation" / "overlays.png") as sheet:
        green = (np.asarray(sheet.convert("RGB")) == (0, 255, 120)).all(axis=2)
    rows, columns = np.nonzero(green)
    assert 54 <= rows.min() <= 58
    assert 165 <= rows.max() <= 169
    assert columns.max() < 224  # of the first image alone
    assert not green[112, 84:140].any()  # inside it


def test_overlay_of_one_image(tmp_path: Path) -> None:
    row = score_rows(tmp_path, 1).to_pandas().iloc[0]
    buffer = io.BytesIO()
    lesion(320, 240).save(buffer, "JPEG")
    pair = overlay(buffer.getvalue(), row)
    assert pair.size == (2 * 224, 224)
    assert pair.getpixel((round(64 / 320 * 224), 120)) == (255, 255, 255)
    red, _, blue = np.asarray(pair)[int(2.5 / 4 * 224), 224 + int(1.5 / 4 * 224)]
    assert red > blue  # at the map's peak
    with pytest.raises(DecodeError):
        overlay(b"no image", row)


def test_boxes_in_pixels_become_fractions_of_their_image(scores: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((120, 160), np.uint8)  # half the image's size
    mask[48:96, 32:96] = 255
    Image.fromarray(mask).save(masks / "001.png")
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    content, markdown, _ = evaluate(request(scores, labels, masks=str(masks)))
    assert content["localization"]["box_iou"] == 1.0
    assert content["localization"]["lesion_kept"] == 1.0
    assert "Localization against 1 lesion masks" in markdown


def test_localization_joins_by_id_and_skips_empty_masks(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    full = np.full((24, 32), 255, np.uint8)
    Image.fromarray(full).save(masks / "000_segmentation.png")
    Image.fromarray(full * 0).save(masks / "001.png")
    Image.fromarray(full).convert("1").save(masks / "002.png")
    rows = score_rows(tmp_path, 4).to_pandas()
    figures, each = localization(rows, str(masks))
    assert (figures["masks"], figures["empty_masks"], figures["peak_inside"]) == (2, 1, 1.0)
    assert each.index.tolist() == ["000", "002"]
    assert each["box_iou"].tolist() == pytest.approx([128 * 96 / (320 * 240)] * 2)
    assert figures["box_iou"] == pytest.approx(each["box_iou"].mean())
    with pytest.raises(InputError, match="--masks: no evaluated image"):
        localization(rows[3:], str(masks))


def test_a_mask_of_another_frame_is_refused(tmp_path: Path) -> None:
    Image.new("1", (300, 900)).save(tmp_path / "000.png")
    with pytest.raises(InputError, match="has 300 x 900 pixels, its image 320 x 240"):
        localization(score_rows(tmp_path, 1).to_pandas(), str(tmp_path))


def write_metadata(path: Path, numbers: list[int]) -> str:
    """Sex by turns, and ages in fives; every tenth is unknown."""
    sexes = ["female", "male"] * (len(numbers) // 2 + 1)
    frame = pd.DataFrame({"image_id": [f"{number:03d}" for number in numbers]})
    frame["sex"] = sexes[: len(numbers)]
    frame["age"] = [str(20 + 5 * (n % 15)) if n % 10 else "unknown" for n in numbers]
    frame.to_csv(path, index=False)
    return str(path)


def test_subgroups_are_written(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    plain = evaluate(request(scores, labels))[0]
    metadata = write_metadata(tmp_path / "metadata.csv", list(range(28)))
    asked = request(scores, labels, metadata=metadata, by=("sex", "age"))
    content, markdown, _ = evaluate(asked)
    by_group = content.pop("subgroups")
    assert content == plain
    written = json.loads((scores / "_evaluation" / "evaluation.json").read_text())
    assert written["subgroups"] == by_group
    assert by_group["images_without_metadata"] == 2
    groups = by_group["columns"]["sex"]["groups"]
    assert {name: one["n"] for name, one in groups.items()} == {
        "female": 14,
        "male": 14,
        "unknown": 2,
    }
    assert groups["female"]["classes"]["melanoma"]["positives"] == 5  # 0, 6, 12, 18 and 24
    ages = by_group["columns"]["age"]["groups"]
    assert [*ages] == [f"{age} to {age + 9}" for age in range(20, 100, 10)] + ["unknown"]
    assert ages["unknown"]["n"] == 5
    assert sum(one["n"] for one in ages.values()) == 30
    assert by_group["decisions"]["nevus"] == "p_nevus >= 0.5"
    assert "| male | melanoma | 5 of 14 (few) |" in markdown


def test_flags_decide_in_subgroups(scores: Path, tmp_path: Path) -> None:
    for name in ("part-a.parquet", "part-b.parquet"):
        table = pq.read_table(scores / name)
        flags = pa.array([True, None] * (len(table) // 2), pa.bool_())
        index = table.schema.get_field_index("flag_melanoma")
        pq.write_table(table.set_column(index, "flag_melanoma", flags), scores / name)
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    metadata = write_metadata(tmp_path / "metadata.csv", list(range(30)))
    content = evaluate(request(scores, labels, metadata=metadata, by=("sex",)))[0]["subgroups"]
    assert content["decisions"] == {
        "melanoma": "flag_melanoma",
        "seborrheic_keratosis": "p_seborrheic_keratosis >= 0.5",
        "nevus": "p_nevus >= 0.5",
    }
    sensitivities = [
        one["classes"]["melanoma"]["sensitivity"]["fraction"]
        for one in content["columns"]["sex"]["groups"].values()
    ]
    assert sensitivities == [1.0, 0.0]  # every other image is flagged


def test_one_table_can_have_labels_and_metadata(scores: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": [f"{number:03d}" for number in range(30)]})
    frame["dx"] = [CLASSES[number % 3] for number in range(30)]
    frame["site"] = ["back", "arm"] * 15
    frame.to_csv(tmp_path / "table.csv", index=False)
    table = f"{tmp_path}/table.csv"
    asked = request(scores, table, id_column="file", metadata=table, by=("site",))
    groups = evaluate(asked)[0]["subgroups"]["columns"]["site"]["groups"]
    assert [*groups] == ["arm", "back"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": ("sex",)}, "--by: its columns are those of a table; name the table as --metadata"),
        ({"metadata": "metadata.csv"}, "--metadata: name its columns"),
        ({"metadata": "metadata.csv", "by": ("gender",)}, "has no column 'gender'; check --by"),
        ({"metadata": "nothing.csv", "by": ("sex",)}, "--metadata: nothing.csv: no such file"),
        ({"submission": "submission"}, "--submission: submission should be a .csv file"),
    ],
)
def test_bad_metadata_and_submissions_are_refused(
    scores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    write_metadata(tmp_path / "metadata.csv", list(range(30)))
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(request(scores, labels, **changes))
    assert not (scores / "_evaluation").exists()


def test_a_submission_is_of_the_labeled_images(
    scores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = write_labels(tmp_path / "labels.csv", [*range(12), 900])
    evaluate(request(scores, labels, submission=f"{tmp_path}/submission.csv"))
    written = pd.read_csv(tmp_path / "submission.csv", dtype={"image": str})
    assert written.columns.tolist() == ["image", "melanoma", "seborrheic_keratosis"]
    assert written["image"].tolist() == [f"{number:03d}" for number in range(12)]
    rows = pd.read_parquet(scores).sort_values("image_id")[:12]
    assert written["melanoma"].to_numpy(np.float32).tolist() == rows["p_melanoma"].tolist()
    assert "--submission: 1 of the 13 labeled images" in caplog.text


def test_a_submission_that_cannot_be_written_leaves_nothing(scores: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot write to"):
        evaluate(request(scores, labels, submission=f"{tmp_path}/folder.csv"))
    assert not (scores / "_evaluation").exists()


def test_importing_evaluation_is_cheap() -> None:
    code = (
        "import sys, lesioncam.cli, lesioncam.evaluation.evaluate; "
        "print(sorted({'torch', 'ray', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
