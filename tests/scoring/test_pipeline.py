"""Pipeline: the job on a local Ray: its rows, from a folder and from a bucket."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray

from lesioncam.columns import BOX_COLUMNS, probability_columns
from lesioncam.errors import InputError
from lesioncam.predict import load
from lesioncam.schema import scores_schema
from lesioncam.scoring.actors import ClassifyActor, Compute, LocalizeActor
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.scoring.plan import Plan, make_plan
from lesioncam.settings import ModelSettings
from lesioncam.storage.bundle import STAGES, Bundle, load_bundle, read_bundle, save_bundle
from lesioncam.vision import hardware
from lesioncam.vision.network import build_network
from tests.conftest import CLASSES
from tests.messy import Expected, fill, write_lesions
from tests.scores import read_scores

pytestmark = pytest.mark.usefixtures("local_ray")

PROBABILITIES = [
    name for stage in ("final", "stage1", "stage2") for name in probability_columns(CLASSES, stage)
]


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Expected]]:
    folder = tmp_path_factory.mktemp("messy") / "images"
    return folder, fill(folder)


@pytest.fixture(scope="module")
def scored(
    messy: tuple[Path, dict[str, Expected]],
    bundle_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
    local_ray: None,
) -> tuple[Path, dict[str, Any]]:
    """The messy folder, scored once: where, and the run's summary."""
    output = tmp_path_factory.mktemp("scores") / "out"
    return output, score(ScoreRequest(str(messy[0]), bundle_uri, str(output)))


def test_every_listed_file_has_one_row_with_the_right_status_and_size(
    messy: tuple[Path, dict[str, Expected]], scored: tuple[Path, dict[str, Any]]
) -> None:
    folder, expected = messy
    rows = read_scores(scored[0])
    assert sorted(rows.index) == sorted(str(folder / name) for name in expected)
    for name, wanted in expected.items():
        row = rows.loc[str(folder / name)]
        assert row["status"] == ("ok" if wanted.kind is None else "failed"), name
        assert (None if row.isna()["error_kind"] else row["error_kind"]) == wanted.kind, name
        size = row[["width", "height"]]
        assert (None if size.isna().all() else tuple(size)) == wanted.size, name


def test_good_rows_are_complete_and_their_boxes_lie_in_the_image(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    rows = read_scores(scored[0])
    good = rows[rows["status"] == "ok"]
    x0, y0, x1, y1 = (good[name] for name in BOX_COLUMNS)
    assert ((x0 >= 0) & (x0 < x1) & (x1 <= good["width"])).all()
    assert ((y0 >= 0) & (y0 < y1) & (y1 <= good["height"])).all()
    for stage in ("final", "stage1", "stage2"):
        np.testing.assert_allclose(good[probability_columns(CLASSES, stage)].sum(axis=1), 1, 1e-5)
    final = good[probability_columns(CLASSES)]
    assert ("p_" + good["prediction"] == final.idxmax(axis=1)).all()
    assert good["error"].isna().all()
    side = {len(cam) for cam in good["cam"]}
    assert side == {12 * 12}  # 96 pixels through three max-pools
    assert all(np.frombuffer(cam, np.uint8).max() == 255 for cam in good["cam"])


def test_failed_rows_say_why_and_have_no_results(scored: tuple[Path, dict[str, Any]]) -> None:
    rows = read_scores(scored[0])
    bad = rows[rows["status"] == "failed"]
    assert len(bad) == 4
    assert (
        bad[[*PROBABILITIES, "prediction", "cam", "cam_flat", *BOX_COLUMNS]].isna().all(axis=None)
    )
    assert bad["error"].str.len().gt(5).all()
    assert not bad["error"].str.contains("\n").any()


def test_rows_name_their_source_and_their_model(
    scored: tuple[Path, dict[str, Any]], bundle_uri: str
) -> None:
    rows = read_scores(scored[0])
    for uri, row in rows.iterrows():
        assert row["size"] == Path(str(uri)).stat().st_size
        assert row["image_id"] == Path(str(uri)).stem
        modified = pd.Timestamp(Path(str(uri)).stat().st_mtime, unit="s", tz="UTC")
        assert abs(row["last_modified"] - modified) < pd.Timedelta("1ms")
    assert rows["etag"].isna().all()
    assert set(rows["model"]) == {load_bundle(bundle_uri).digest}
    assert rows["run_id"].nunique() == 1


def test_pandas_reads_the_documented_types(scored: tuple[Path, dict[str, Any]]) -> None:
    types = pd.read_parquet(scored[0]).dtypes.astype(str)
    for name in ("width", "height", *BOX_COLUMNS):
        assert types[name] == "Int32"
    assert types["size"] == "Int64"
    assert types["cam_flat"] == "boolean"
    assert set(types[PROBABILITIES]) == {"float32"}
    assert set(types[["last_modified", "scored_at"]]) == {"datetime64[us, UTC]"}


def test_summary_and_records_count_what_is_in_the_parquet(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    output, summary = scored
    assert summary["outcome"] == "done"
    assert (summary["listed"], summary["ok"], summary["failed"]) == (19, 15, 4)
    kinds = {"empty": 1, "not_an_image": 1, "too_large": 1, "truncated": 1}
    assert summary["failed_by_kind"] == kinds
    assert summary["skipped"] == {".txt": 1, "mask (_superpixels)": 1}
    assert (output / "_SUCCESS").exists()
    (run,) = (output / "_lesioncam" / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text()) == summary
    assert not (run / "progress.json").exists()


def test_the_python_api_gives_the_same_rows(
    messy: tuple[Path, dict[str, Expected]],
    scored: tuple[Path, dict[str, Any]],
    bundle_uri: str,
) -> None:
    folder, expected = messy
    job = pd.read_parquet(scored[0]).sort_values("uri", ignore_index=True)
    rows = load(bundle_uri, device="cpu").predict(sorted(str(folder / name) for name in expected))
    assert list(rows.columns) == scores_schema(CLASSES).names
    provenance = ["run_id", "scored_at"]
    pd.testing.assert_frame_equal(
        rows.drop(columns=provenance), job.drop(columns=provenance), rtol=0, atol=1e-5
    )
    assert rows["scored_at"].dtype == job["scored_at"].dtype
    assert rows["run_id"].isna().all()
    assert set(rows["model"]) == {load_bundle(bundle_uri).digest}


def test_a_bucket_gives_the_same_rows_as_the_folder(
    messy: tuple[Path, dict[str, Expected]],
    scored: tuple[Path, dict[str, Any]],
    bundle_uri: str,
    bucket: str,
    model_settings: ModelSettings,
) -> None:
    folder, expected = messy
    client = boto3.client("s3")
    for name in [*expected, "notes.txt", "x_superpixels.png"]:
        client.upload_file(str(folder / name), bucket, f"folder 1/{name}")
    client.put_object(Bucket=bucket, Key="folder 1/odd/", Body=b"")
    original = load_bundle(bundle_uri)
    save_bundle(
        Bundle(model_settings, original.stage1, original.stage2),
        f"s3://{bucket}/model",
        "# A tiny bundle for tests\n",
    )
    score(ScoreRequest(f"s3://{bucket}/folder 1", f"s3://{bucket}/model", f"s3://{bucket}/scores"))

    parts = [
        item["Key"]
        for item in client.list_objects_v2(Bucket=bucket, Prefix="scores/")["Contents"]
        if item["Key"].count("/") == 1 and item["Key"].endswith(".parquet")
    ]
    local = folder.parent / "from_s3"
    local.mkdir()
    for number, key in enumerate(parts):
        client.download_file(bucket, key, str(local / f"{number}.parquet"))
    there, here = read_scores(local), read_scores(scored[0])
    there.index = there.index.str.removeprefix(f"s3://{bucket}/folder 1/")
    here.index = here.index.str.removeprefix(f"{folder}/")
    here, there = here.sort_index(), there.sort_index()
    assert list(there.index) == list(here.index)
    np.testing.assert_allclose(there[PROBABILITIES], here[PROBABILITIES], atol=1e-5)
    same = ["status", "error_kind", "width", "height", "size", "prediction", *BOX_COLUMNS, "cam"]
    pd.testing.assert_frame_equal(there[same], here[same])
    assert there["etag"].notna().all()


def test_many_small_pending_files_do_not_stop_before_a_full_window(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_plan(*args: Any, **options: Any) -> Plan:
        plan = make_plan(*args, **options)
        small = replace(plan, batch_size=4, block_rows=4, part_rows=8)
        return replace(small, window=2 * 8 + 4, decode_cpus=0.25)

    monkeypatch.setattr("lesioncam.scoring.stream.make_plan", small_plan)
    monkeypatch.setattr("lesioncam.storage.pending.PARTITION_ROWS", 9)
    write_lesions(tmp_path / "images", 70)
    request = ScoreRequest(str(tmp_path / "images"), bundle_uri, str(tmp_path / "out"))
    assert score(request)["ok"] == 70
    (pending,) = (tmp_path / "out" / "_lesioncam" / "runs").glob("*/pending")
    assert len(list(pending.iterdir())) > 4
    assert len(read_scores(tmp_path / "out")) == 70


def test_another_model_on_the_same_output_is_refused(
    messy: tuple[Path, dict[str, Expected]],
    scored: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    bundle_uri: str,
    model_settings: ModelSettings,
) -> None:
    before = sorted(scored[0].rglob("*"))
    stages = [build_network(model_settings).state_dict() for _ in range(2)]
    other = str(tmp_path / "other")
    digest = save_bundle(Bundle(model_settings, stages[0], stages[1]), other, "other\n")
    with pytest.raises(InputError, match=digest) as error:
        score(ScoreRequest(str(messy[0]), other, str(scored[0])))
    assert load_bundle(bundle_uri).digest in str(error.value)
    assert sorted(scored[0].rglob("*")) == before


def test_an_actor_on_a_node_without_the_precision_refuses_its_first_batch(
    bundle_uri: str, monkeypatch: pytest.MonkeyPatch, threads_restored: None
) -> None:
    monkeypatch.setattr(hardware, "cpu_features", frozenset)
    bundle = read_bundle(bundle_uri)
    compute = Compute(bundle.settings, "bfloat16", 4)
    stage1, stage2 = (ray.put(bundle.weights[stage]) for stage in STAGES)
    for actor in (
        LocalizeActor(compute, stage1, ()),
        ClassifyActor(compute, stage2, (), window=None),
    ):
        with pytest.raises(InputError, match=r"^--precision: this hardware, or a node"):
            actor(pa.table({}))
