"""Resume: what a run scores again, and what it refuses; without Ray."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesioncam.errors import InputError
from lesioncam.evaluation.evaluate import EvaluateRequest, evaluate
from lesioncam.schema import scores_schema
from lesioncam.scoring import small
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.vision import hardware
from lesioncam.vision.classifier import Network
from lesioncam.vision.engine import load_network
from lesioncam.vision.hardware import hardware_of, has_openvino
from tests.conftest import CLASSES
from tests.messy import lesion, write_lesions
from tests.scores import read_scores

SCHEMA = scores_schema(CLASSES, precision=hardware_of().native_float)

pytestmark = pytest.mark.usefixtures("in_process")


def test_running_again_scores_only_pending_images(tmp_path: Path, bundle_uri: str) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 7)
    request = ScoreRequest(str(images), bundle_uri, str(output))
    limited = replace(request, limit=5)
    summary = score(limited)
    assert summary["listed"] == summary["scored_now"] == 5
    (part,) = output.glob("*.parquet")
    assert pq.read_schema(part).equals(SCHEMA, check_metadata=True)
    first = read_scores(output)
    assert [Path(uri).name for uri in first.index] == [f"{number}.jpg" for number in range(5)]
    assert score(limited)["scored_now"] == 0
    assert score(request)["scored_now"] == 2
    rows = read_scores(output)
    assert len(rows) == 7
    pd.testing.assert_frame_equal(rows.loc[first.index], first)


def test_a_changed_image_is_scored_again_and_its_row_replaced(
    tmp_path: Path, bundle_uri: str
) -> None:
    """Even where the clock of the machine that wrote the row was far ahead."""
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 3)
    request = ScoreRequest(str(images), bundle_uri, str(output))
    score(request)
    (part,) = output.glob("*.parquet")
    rows = pq.read_table(part)
    then = pd.Timestamp("2099-01-01", tz="UTC")
    field, index = rows.schema.field("scored_at"), rows.schema.get_field_index("scored_at")
    late = pa.array([then] * 3, field.type)
    pq.write_table(rows.set_column(index, field, late), part)
    lesion(64, 48).save(images / "1.jpg")
    (images / "2.jpg").unlink()
    summary = score(request)
    assert (summary["listed"], summary["scored_now"], summary["unlisted"]) == (2, 1, 1)
    assert len(read_scores(output)) == 3
    changed = read_scores(output).loc[str(images / "1.jpg")]
    assert changed["width"] == 64
    assert changed["scored_at"] > then
    assert score(request)["scored_now"] == 0


def test_images_that_vanish_or_change_after_the_listing_are_scored_again(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 3)
    run_pipeline = small.run_pipeline
    gone, replaced = images / "0.jpg", images / "1.jpg"
    before = replaced.stat().st_size

    def listed_already(*args: Any) -> Any:
        gone.unlink()
        lesion(64, 48).save(replaced)
        return run_pipeline(*args)

    request = ScoreRequest(str(images), bundle_uri, str(output))
    with monkeypatch.context() as patch:
        patch.setattr(small, "run_pipeline", listed_already)
        assert score(request)["failed_by_kind"] == {"unreachable": 1}
    row = read_scores(output).loc[str(replaced)]
    assert (row["width"], row["size"]) == (64, before)

    summary = score(request)
    assert (summary["listed"], summary["scored_now"], summary["unlisted"]) == (2, 1, 1)
    assert read_scores(output).loc[str(replaced), "size"] == replaced.stat().st_size != before
    lesion(120, 90).save(gone)
    assert score(request)["scored_now"] == 1
    assert read_scores(output)["status"].tolist() == ["ok"] * 3


def test_failed_images_are_scored_again_when_asked(tmp_path: Path, bundle_uri: str) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "broken.jpg").write_bytes(b"")
    request = ScoreRequest(str(images), bundle_uri, str(output), max_failed_fraction=0.3)
    assert score(request)["outcome"] == "too_many_failed"
    (part,) = output.glob("*.parquet")  # of failed rows alone
    assert pq.read_schema(part).equals(SCHEMA, check_metadata=True)
    write_lesions(images, 2)
    summary = score(request)
    assert (summary["outcome"], summary["scored_now"]) == ("too_many_failed", 2)
    again = replace(request, retry_failed=True, max_failed_fraction=0.4)
    summary = score(again)
    assert (summary["outcome"], summary["scored_now"]) == ("done", 1)
    assert len(read_scores(output)) == 3


def test_a_list_of_uris_is_scored_and_a_missing_file_has_a_row(
    tmp_path: Path, bundle_uri: str
) -> None:
    write_lesions(tmp_path / "images", 2)
    uris = [str(tmp_path / "images" / name) for name in ("0.jpg", "1.jpg", "gone.jpg", "0.jpg")]
    pd.DataFrame({"uri": uris}).to_csv(tmp_path / "list.csv", index=False)
    output = tmp_path / "out"
    summary = score(ScoreRequest(str(tmp_path / "list.csv"), bundle_uri, str(output)))
    assert (summary["listed"], summary["ok"]) == (3, 2)
    assert summary["skipped"] == {"listed twice": 1}
    assert read_scores(output).loc[uris[2], "error_kind"] == "not_found"


def test_bad_input_writes_nothing(tmp_path: Path, bundle_uri: str) -> None:
    (tmp_path / "images").mkdir()
    output = tmp_path / "out"
    with pytest.raises(InputError, match="--images: no images in"):
        score(ScoreRequest(str(tmp_path / "images"), bundle_uri, str(output)))
    assert not output.exists()


def test_an_output_that_pyarrow_cannot_name_is_refused_before_any_work(
    tmp_path: Path, bundle_uri: str, bucket: str
) -> None:
    write_lesions(tmp_path, 1)
    with pytest.raises(InputError, match=r"a//scores: two slashes without a name between them"):
        score(ScoreRequest(str(tmp_path), bundle_uri, f"s3://{bucket}/a//scores"))
    assert boto3.client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_rows_of_moved_images_stay_until_they_are_dropped(
    tmp_path: Path, bundle_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    images, moved, output = tmp_path / "images", tmp_path / "moved", tmp_path / "out"
    write_lesions(images, 3)
    request = ScoreRequest(str(images), bundle_uri, str(output))
    score(request)
    images.rename(moved)
    caplog.clear()
    summary = score(replace(request, images=str(moved)))
    assert (summary["scored_now"], summary["unlisted"], summary["dropped"]) == (3, 3, 0)
    assert "3 rows of the output are of images that are not in this listing" in caplog.text
    assert len(read_scores(output)) == 6
    (moved / "2.jpg").unlink()
    summary = score(replace(request, images=str(moved), drop_unlisted=True))
    assert (summary["scored_now"], summary["unlisted"], summary["dropped"]) == (0, 0, 4)
    assert list(read_scores(output).index) == [str(moved / "0.jpg"), str(moved / "1.jpg")]
    (part,) = output.glob("*.parquet")
    assert pq.read_schema(part).equals(SCHEMA, check_metadata=True)


def test_dropping_every_old_row_leaves_the_new_ones(tmp_path: Path, bundle_uri: str) -> None:
    images, moved, output = tmp_path / "images", tmp_path / "moved", tmp_path / "out"
    write_lesions(images, 2)
    request = ScoreRequest(str(images), bundle_uri, str(output), drop_unlisted=True)
    score(request)
    images.rename(moved)
    assert score(replace(request, images=str(moved)))["dropped"] == 2
    assert list(read_scores(output).index) == [str(moved / "0.jpg"), str(moved / "1.jpg")]


def test_rows_are_not_dropped_for_a_part_of_the_listing(tmp_path: Path, bundle_uri: str) -> None:
    request = ScoreRequest(str(tmp_path), bundle_uri, str(tmp_path / "out"), limit=1)
    with pytest.raises(InputError, match="--drop-unlisted: not together with --limit"):
        score(replace(request, drop_unlisted=True))


def test_renamed_rows_of_moved_images_are_not_scored_again(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/guide/score.md has it."""
    images, moved = tmp_path / "images", tmp_path / "moved"
    write_lesions(images, 3)
    score(ScoreRequest(str(images), bundle_uri, str(tmp_path / "scores")))
    images.rename(moved)
    guide = Path(__file__).parents[2] / "docs" / "guide" / "score.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("/data/clinic/", f"{images}/").replace("/archive/clinic/", f"{moved}/"), {})
    summary = score(ScoreRequest(str(moved), bundle_uri, str(tmp_path / "moved-scores")))
    assert (summary["listed"], summary["scored_now"], summary["unlisted"]) == (3, 0, 0)


def test_images_that_share_an_id_are_counted(tmp_path: Path, bundle_uri: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for patient in ("p1", "p2"):
        write_lesions(images / patient, 2)
    write_lesions(images, 1)
    (images / "0.jpg").rename(images / "other.jpg")
    summary = score(ScoreRequest(str(images), bundle_uri, str(tmp_path / "out")))
    assert (summary["listed"], summary["shared_image_ids"]) == (5, 2)


def test_success_means_that_the_whole_listing_has_rows(tmp_path: Path, bundle_uri: str) -> None:
    images, success = tmp_path / "images", tmp_path / "out" / "_SUCCESS"
    write_lesions(images, 2)
    request = ScoreRequest(str(images), bundle_uri, str(tmp_path / "out"))
    score(replace(request, limit=1))
    assert not success.exists()
    score(request)
    assert success.exists()
    score(replace(request, limit=2))
    assert not success.exists()
    (images / "broken.jpg").write_bytes(b"")
    assert score(replace(request, max_failed_fraction=0.1))["outcome"] == "too_many_failed"
    assert not success.exists()
    assert score(request)["scored_now"] == 0
    assert success.exists()


def write_list(path: Path, **patients: str) -> str:
    """A list of images of this folder and their patients; the site is always the same."""
    lines = [f"{number[1:]}.jpg;back;{patient}\n" for number, patient in patients.items()]
    path.write_text("".join(["uri;site;patient\n", *lines]), encoding="utf-8")
    return str(path)


def test_columns_of_a_list_are_kept_through_a_resume_and_a_retry(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lesions(tmp_path, 3)
    (tmp_path / "3.jpg").write_bytes(b"")
    output = tmp_path / "out"
    schema = scores_schema(CLASSES, ["patient", "site"], hardware_of().native_float)
    images = write_list(tmp_path / "list.csv", i0="Müller", i1="", i3="x", i4="gone")
    request = ScoreRequest(images, bundle_uri, str(output), keep_columns=("patient", "site"))

    def killed(*_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("lesioncam.scoring.pipeline.Results.compact", killed)
        with pytest.raises(RuntimeError):
            score(replace(request, limit=2))
    assert len(read_scores(output)) == 2
    reordered = replace(request, keep_columns=("site", "patient"))
    assert score(reordered)["scored_now"] == 2
    (part,) = output.glob("*.parquet")
    assert pq.read_schema(part).equals(schema, check_metadata=True)
    rows = read_scores(output)
    assert rows["patient"].isna().tolist() == [False, True, False, False]
    assert rows["patient"].dropna().tolist() == ["Müller", "x", "gone"]
    assert rows["site"].tolist() == ["back"] * 4
    assert rows["status"].tolist() == ["ok", "ok", "failed", "failed"]
    (run, *_) = output.glob("_lesioncam/runs/*/run.json")
    assert sorted(json.loads(run.read_text())["keep_columns"]) == ["patient", "site"]

    # A row stays as it was scored; one that is scored again has what the list says now.
    write_list(tmp_path / "list.csv", i0="other", i2="new", i3="other")
    summary = score(replace(request, retry_failed=True))
    assert (summary["scored_now"], summary["unlisted"]) == (2, 2)
    assert read_scores(output)["patient"].dropna().tolist() == ["Müller", "new", "other", "gone"]
    assert score(replace(request, drop_unlisted=True))["dropped"] == 2
    assert read_scores(output)["patient"].tolist() == ["Müller", "new", "other"]


def test_scores_with_a_kept_column_are_evaluated(tmp_path: Path, bundle_uri: str) -> None:
    write_lesions(tmp_path, 4)
    images = write_list(tmp_path / "list.csv", i0="a", i1="a", i2="b", i3="b")
    output, labels = str(tmp_path / "out"), tmp_path / "labels.csv"
    score(ScoreRequest(images, bundle_uri, output, keep_columns=("patient",)))
    rows = [f"{n},{int(n % 2 == 0)},0,{int(n % 2)}\n" for n in range(4)]
    labels.write_text("".join([f"image_id,{','.join(CLASSES)}\n", *rows]), encoding="utf-8")
    content, _, _ = evaluate(EvaluateRequest(output, str(labels), None, "nevus"))
    assert set(content["final"]) == {*CLASSES, "mean"}


def test_other_columns_than_the_output_has_are_refused_before_any_write(
    tmp_path: Path, bundle_uri: str
) -> None:
    write_lesions(tmp_path, 2)
    images = write_list(tmp_path / "list.csv", i0="a", i1="b")
    output = tmp_path / "out"
    request = ScoreRequest(images, bundle_uri, str(output), keep_columns=("patient",))
    for names, message in (
        (("nothing",), "no 'nothing' column for --keep-columns"),
        (("uri",), "--keep-columns: 'uri' is a name of the scores'"),
    ):
        with pytest.raises(InputError, match=message):
            score(replace(request, keep_columns=names))
        assert not output.exists()
    score(request)
    before = read_scores(output)
    for others in ((), ("patient", "site")):
        with pytest.raises(InputError, match="give --keep-columns patient, or name another"):
            score(replace(request, keep_columns=others))
    pd.testing.assert_frame_equal(read_scores(output), before)
    assert (output / "_SUCCESS").exists()


# Precision


def precisions(output: Path) -> list[str]:
    """What the runs of an output recorded, in their order."""
    runs = sorted(output.glob("_lesioncam/runs/*/run.json"))
    plans = [json.loads(run.read_text()).get("plan") for run in runs]
    return [plan["precision"] for plan in plans if plan]


def test_a_run_continues_in_the_precision_of_the_scores(
    tmp_path: Path,
    bundle_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 3)
    request = ScoreRequest(str(images), bundle_uri, str(output), limit=1, precision="float32")
    score(request)
    (part,) = output.glob("*.parquet")
    assert pq.read_schema(part).metadata[b"lesioncam.precision"] == b"float32"
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset({"avx512_bf16"}))
    before = sorted(output.rglob("*"))
    with pytest.raises(
        InputError, match=r"^--precision: the scores in .* in float32, not in bfloat16; leave it"
    ):
        score(replace(request, precision="bfloat16"))
    assert sorted(output.rglob("*")) == before
    with caplog.at_level("INFO", "lesioncam"):
        score(replace(request, precision="auto", limit=2))
    assert "continuing in float32, as the scores that are there" in caplog.text
    score(replace(request, precision="auto", limit=None, output=str(tmp_path / "other")))
    assert precisions(output) == ["float32", "float32"]
    assert precisions(tmp_path / "other") == ["bfloat16"]


def test_scores_that_the_hardware_cannot_continue_are_refused(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 2)
    request = ScoreRequest(str(images), bundle_uri, str(output))
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "cpu_features", lambda: frozenset({"avx512_bf16"}))
        score(request)
    monkeypatch.setattr(hardware, "cpu_features", frozenset)
    lesion(32, 32).save(images / "new.jpg")
    with pytest.raises(InputError, match=r"does not compute in bfloat16; choose another precision"):
        score(request)
    assert len(read_scores(output)) == 2
    assert (output / "_SUCCESS").exists()
    with pytest.raises(InputError, match="does not compute in bfloat16"):
        score(replace(request, output=str(tmp_path / "other"), precision="bfloat16"))


def test_int8_is_refused_before_any_score_is_written(
    tmp_path: Path,
    bundle_uri: str,
    quantized_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 1)
    request = ScoreRequest(str(images), quantized_uri, str(output), precision="int8")
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset({"avx2"}))
    with pytest.raises(InputError, match=r"^--precision: int8 needs OpenVINO and a CPU with VNNI"):
        score(request)
    with pytest.raises(InputError, match=r"^--precision: the bundle has no activation ranges"):
        score(replace(request, bundle=bundle_uri, output=str(tmp_path / "other")))
    assert not list(output.glob("*.parquet"))
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not has_openvino(), reason="needs OpenVINO")
def test_auto_takes_int8_where_bundle_and_cpu_have_it(
    tmp_path: Path, quantized_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    write_lesions(images, 2)
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset({"avx512_vnni"}))
    ranges = []

    def recorded(*arguments: Any) -> Network:
        ranges.append(arguments[-1])
        return load_network(*arguments)

    monkeypatch.setattr("lesioncam.scoring.stages.load_network", recorded)
    summary = score(ScoreRequest(str(images), quantized_uri, str(output), gpus=0))
    assert ranges == [(4.0, 4.0, 4.0), (5.0, 5.0, 5.0)]
    assert summary["ok"] == 2
    assert precisions(output) == ["int8"]
