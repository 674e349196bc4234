import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import lesioncam
from lesioncam.cli import main
from lesioncam.columns import ErrorKind, probability_columns
from lesioncam.errors import InputError
from lesioncam.evaluation import pictures, plots, survey
from lesioncam.evaluation.page import render
from lesioncam.evaluation.pictures import Picture
from lesioncam.evaluation.report import HTML_FILE, JSON_FILE
from lesioncam.schema import scores_schema
from lesioncam.storage import uris
from lesioncam.storage.results import Results
from lesioncam.storage.store import StoreError
from lesioncam.vision.metrics import with_interval
from tests.conftest import CLASSES
from tests.evaluation.test_evaluate import score_rows, write_labels
from tests.messy import lesion

ROWS = 60
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser's parser would find them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def frame(folder: Path, count: int = ROWS, failed: int = 6) -> pd.DataFrame:
    """Rows of which the last `failed` failed; the stages disagree on every fifth other."""
    rows = score_rows(folder, count).to_pandas()
    first, second = (probability_columns(CLASSES, stage) for stage in ("stage1", "stage2"))
    rows[second] = rows[first].to_numpy()
    fifth = np.arange(count) % 5 == 0
    rows.loc[fifth, second] = rows.loc[fifth, np.roll(first, 1)].to_numpy()
    bad = rows.index[count - failed :]
    nulls = [n for n in rows if n not in ("uri", "image_id", "status", "model", "scored_at")]
    rows.loc[bad, nulls] = None
    rows.loc[bad, "status"] = "failed"
    rows.loc[bad, "error_kind"] = np.where(np.arange(failed) % 3 == 0, "unreachable", "truncated")
    rows.loc[bad, "error"] = "it ends early"
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, scores_schema(CLASSES), preserve_index=False)


def write(uri: Path, *parts: pa.Table) -> str:
    results = Results(str(uri))
    for number, part in enumerate(parts):
        results.write_part(f"part-{number}.parquet", part)
    results.succeed()
    return str(uri)


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    return frame(tmp_path / "images")


@pytest.fixture
def scores(tmp_path: Path, rows: pd.DataFrame) -> str:
    return write(tmp_path / "scores", table(rows[:25]), table(rows[25:]))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is read: the page says so in its place."""
    missing = Picture(None, None, (0, 0), "not_found")
    monkeypatch.setattr(
        "lesioncam.evaluation.report.load_pictures", lambda rows, _: [missing] * len(rows)
    )


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are empty: matplotlib takes a second for those of a report."""
    monkeypatch.setattr("lesioncam.evaluation.plots._svg", lambda *_: "<svg></svg>")


def test_counts_are_those_of_the_scores(
    scores: str,
    rows: pd.DataFrame,
    no_pictures: None,
    no_plots: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lesioncam.storage.results._BATCH_ROWS", 7)
    made = lesioncam.report(scores)
    report = made["report"]
    assert json.loads(Path(made["output"], JSON_FILE).read_text()) == report
    ok = rows[rows["status"] == "ok"]
    assert report["complete"]
    assert report["images"] == {
        "total": 60,
        "ok": 54,
        "failed": 6,
        "flagged": None,
        "stages_disagree": 11,
        "cam_flat": 0,
    }
    assert report["failed_by_kind"] == {"truncated": 4, "unreachable": 2}
    assert report["retried_kinds"] == ["unreachable"]
    assert report["models"] == {"m": 60}
    assert np.sum(report["stages"]["predictions"]) == 54
    assert np.trace(report["stages"]["predictions"]) == 54 - 11
    assert sum(report["stages"]["difference"]) == 54
    for name in CLASSES:
        figures = report["classes"][name]
        assert figures["predicted"] == (ok["prediction"] == name).sum()
        for stage in ("final", "stage1", "stage2"):
            (column,) = probability_columns([name], stage)
            assert figures[stage]["mean"] == pytest.approx(ok[column].mean(), abs=1e-5)
            counts, _ = np.histogram(ok[column].astype(float), bins=20, range=(0, 1))
            assert figures[stage]["histogram"] == counts.tolist()
            for q, value in figures[stage]["quantiles"].items():
                exact = np.quantile(ok[column].astype(float), float(q), method="inverted_cdf")
                assert value == pytest.approx(exact, abs=1 / survey.BINS)


def test_the_page_says_what_the_json_says(scores: str, no_pictures: None, no_plots: None) -> None:
    made = lesioncam.report(scores)
    text = " ".join(Page(Path(made["output"], HTML_FILE).read_text()).text.split())
    for expected in (
        "Scores of 60 images",
        "Complete",
        "6 failed",
        "No flags",
        "11 disagreements",
        made["report"]["gallery"]["rule"],
        "unreachable 2 tries them again",
        "truncated 4 tries those that changed",
    ):
        assert expected in text
    assert len(pd.read_parquet(scores)) == ROWS  # the report does not disturb reading


def test_while_a_run_is_under_way_the_newest_rows_count(
    scores: str, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    results = Results(scores)
    results.begin()
    again = rows[54:58].assign(scored_at=datetime.now(UTC) + timedelta(hours=1))
    again["error_kind"] = "empty"
    results.write_part("part-2.parquet", table(again))
    made = lesioncam.report(scores)
    assert not made["report"]["complete"]
    assert made["report"]["images"]["total"] == ROWS
    assert made["report"]["failed_by_kind"] == {"empty": 4, "truncated": 2}
    shown = made["report"]["gallery"]["images"]
    assert sorted(image["image_id"] for image in shown) == sorted(rows["image_id"])
    assert "Not complete" in Path(made["output"], HTML_FILE).read_text()


def test_names_stay_text(tmp_path: Path, no_pictures: None) -> None:
    rows = frame(tmp_path)
    for column in ("image_id", "uri", "error"):
        rows[column] = HOSTILE + rows["uri"]
    made = lesioncam.report(write(tmp_path / "scores", table(rows)))
    page = Page(Path(made["output"], HTML_FILE).read_text())
    assert page.tags["script"] == 1
    assert page.tags["img"] == 0
    assert page.text.count(HOSTILE) >= 2 * ROWS
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_a_plot_has_no_markup_of_a_class_name() -> None:
    curve = {key: [0, 1] for key in ("false_positive_rate", "sensitivity", "low", "high")}
    bins = [{"mean": 0.5, "fraction": 0.5, "low": 0.4, "high": 0.6}]
    stages = {stage: {"histogram": [1, 2]} for stage in ("stage1", "stage2", "final")}
    name = "\\1" + HOSTILE
    for drawn in (
        plots.distribution(stages, name, 7),
        plots.roc(curve, 7, None),
        plots.calibration(bins, name, 7),
    ):
        page = Page(drawn)
        assert not {"script", "img"} & set(page.tags)
        ids = [value for _, attribute, value in page.attributes if attribute == "id"]
        assert ids
        assert all(re.fullmatch(r"[a-z]+-7-[\w.]+", one) for one in ids)


@pytest.mark.parametrize("name", [HOSTILE, "a\\1"])
def test_class_names_that_no_bundle_has_are_refused(tmp_path: Path, name: str) -> None:
    scores = table(frame(tmp_path))
    columns = [column.replace("nevus", name) for column in scores.column_names]
    uri = write(tmp_path / "scores", scores.rename_columns(columns))
    with pytest.raises(InputError, match=r"^scores: .* cannot be a class name"):
        lesioncam.report(uri)


def test_the_page_loads_nothing(scores: str, tmp_path: Path, no_pictures: None) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(30)))
    made = lesioncam.report(scores, labels=labels)
    text = Path(made["output"], HTML_FILE).read_text()
    page = Page(text)
    links = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not page.tags["link"]
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [v for _, _, v in page.attributes if v.startswith("default-src")]
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {link[1:] for link in links if link[0] == "#"} | set(re.findall(r"url\(#(.+?)\)", text))
    assert used <= set(ids)


def test_pictures_and_why_there_is_none(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rows = frame(images, 6, failed=1)
    for number in range(5):
        lesion(320, 240, number).save(images / f"{number:03d}.jpg")
    rows["size"] = [(images / f"{n:03d}.jpg").stat().st_size for n in range(5)] + [9]
    (images / "001.jpg").unlink()
    (images / "002.jpg").write_bytes((images / "003.jpg").read_bytes() + b"more")
    (images / "003.jpg").write_bytes(b"x" * int(rows["size"][3]))
    lesion(100, 240).save(images / "004.jpg")
    rows.loc[4, "size"] = None  # unknown
    made = lesioncam.report(write(tmp_path / "scores", table(rows)))
    problems = {
        image["image_id"]: image["problem"] for image in made["report"]["gallery"]["images"]
    }
    assert problems == {
        "000": None,
        "001": "not_found",
        "002": pictures.CHANGED,
        "003": "not_an_image",
        "004": pictures.CHANGED,
        "005": "unreachable",
    }
    text = Path(made["output"], HTML_FILE).read_text()
    assert text.count("No picture: ") == 5
    assert '<rect class="box" x="52.2" y="77.8" width="100.4" height="74.8"/>' in text  # 256 x 192
    data = [
        base64.b64decode(found) for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    ]
    (tmp_path / "thumbnail.jpg").write_bytes(data[0])
    with Image.open(tmp_path / "thumbnail.jpg") as thumbnail:
        assert thumbnail.size == (256, 192)
    assert len(data) == 2  # the thumbnail is there once, though it is shown twice


def read_with(
    monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame, read: Callable[[str, int], bytes]
) -> list[str | None]:
    """Why the rows have no picture if one thread reads their images like this."""
    monkeypatch.setattr(pictures, "_THREADS", 1)
    monkeypatch.setattr(pictures, "read_uri", read)
    records = table(rows).to_pylist()
    return [picture.problem for picture in pictures.load_pictures(records, 24_000)]


def test_a_store_that_does_not_answer_is_not_asked_for_every_image(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def read(uri: str, _: int) -> bytes:
        requests.append(uri)
        raise StoreError(ErrorKind.UNREACHABLE, "no answer")

    assert read_with(monkeypatch, rows[:54], read) == ["unreachable"] * 54
    assert requests == rows["uri"][: pictures._MAX_UNREACHABLE].tolist()


def test_single_images_that_are_unreachable_do_not_stop_the_reading(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [ErrorKind.UNREACHABLE, ErrorKind.UNREACHABLE, ErrorKind.NOT_FOUND] * 10

    def read(uri: str, _: int) -> bytes:
        raise StoreError(kinds[int(Path(uri).stem)], "gone")

    assert read_with(monkeypatch, rows[:30], read) == kinds


def test_images_are_read_within_the_limits_of_scoring(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows["size"] = [2**26 + 1, 2**26] * 30

    def read(uri: str, max_bytes: int) -> bytes:
        assert max_bytes == uris.MAX_BYTES
        assert uris._LARGE_FILE.locked() == (int(Path(uri).stem) % 2 == 0)
        return b""

    assert read_with(monkeypatch, rows[:4], read) == [pictures.CHANGED] * 4


@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 50.0, 0.02])
def test_a_thumbnail_fits_its_budget(aspect: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for max_bytes in (6_000, 24_000, 100_000):
        data, size = pictures._shrunk(Image.fromarray(noise), aspect, max_bytes)
        assert len(data) <= max_bytes
        assert min(size) >= 1


def test_the_page_is_small_whatever_it_shows(
    tmp_path: Path, no_pictures: None, no_plots: None
) -> None:
    rows = frame(tmp_path, 200, failed=20)
    rows["uri"] = "s3://bucket/" + rows["image_id"] + "&" * 1000  # as long as a key can be
    rows["image_id"] += "<" * 250
    content = lesioncam.report(write(tmp_path / "scores", table(rows)))["report"]
    shown = content["gallery"]["images"]
    assert len(shown) == 120
    largest = Picture(b"x" * 24_000, b"x" * 4_000, (256, 192), None)
    failed = Picture(None, None, (0, 0), "truncated")
    page = render(content, [largest if one["status"] == "ok" else failed for one in shown])
    assert len(page.encode()) < 15_000_000


def test_the_choice_does_not_depend_on_the_files(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    shuffled = rows.sample(frac=1, random_state=0)
    chosen = []
    for number, parts in enumerate(([rows], [shuffled[:9], shuffled[9:40], shuffled[40:]])):
        uri = write(tmp_path / str(number), *map(table, parts))
        images = lesioncam.report(uri, gallery=16)["report"]["gallery"]["images"]
        chosen.append([(image["uri"], image["group"]) for image in images])
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == len(set(chosen[0])) == 16


def test_the_most_suspicious_come_first(
    scores: str, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    gallery = lesioncam.report(scores, gallery=32)["report"]["gallery"]
    groups = Counter(image["group"] for image in gallery["images"])
    assert groups == {"suspicious": 6, "disagreement": 4, "failed": 2, "random": 20}
    highest = rows.nlargest(6, "p_melanoma")["uri"].tolist()
    assert [image["uri"] for image in gallery["images"][:6]] == highest
    assert gallery["rule"].startswith(
        "32 of 60 images are shown: 6 with the highest p_melanoma, at most a tenth of the scored "
        "images; 4 whose stages predict different classes"
    )
    assert lesioncam.report(scores, gallery=0)["report"]["gallery"]["images"] == []


def with_flags(rows: pd.DataFrame, threshold: float | None = 0.4) -> pa.Table:
    """The rows as of a model with an operating point for melanoma only.

    In a pandas frame of this table flags are nullable.
    """
    is_ok = rows["status"] == "ok"
    flags = rows["p_melanoma"] >= (np.inf if threshold is None else threshold)
    quality = [
        ["blurred"] * (p > 0.5) if ok else None
        for p, ok in zip(rows["p_nevus"], is_ok, strict=True)
    ]
    rows = rows.assign(
        quality=pd.Series(quality, rows.index),
        flag_melanoma=flags.astype("boolean").where(is_ok & (threshold is not None)),
    )
    return pa.Table.from_pandas(rows, scores_schema(CLASSES), preserve_index=False)


def test_flagged_images_come_first(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(54)))
    made = lesioncam.report(write(tmp_path / "scores", with_flags(rows)), labels=labels)
    report = made["report"]
    flagged = rows[rows["p_melanoma"] >= 0.4]
    assert report["images"]["flagged"] == len(flagged) == report["classes"]["melanoma"]["flagged"]
    assert report["classes"]["nevus"]["flagged"] is None  # its flags are null
    assert report["quality"] == {"blurred": (rows["p_nevus"] > 0.5).sum()}
    order = flagged.sort_values("p_melanoma", ascending=False)["uri"].tolist()
    images = report["gallery"]["images"]
    assert [one["uri"] for one in images if one["group"] == "suspicious"] == order
    scored = [one for one in images if one["status"] == "ok"]
    assert [one["uri"] for one in scored if one["flagged"] == ["melanoma"]] == order
    truth = np.arange(54) % 3 == 0
    called = rows["p_melanoma"][:54] >= 0.4
    assert list(report["labeled"]["flags"]) == ["melanoma"]
    point = report["labeled"]["flags"]["melanoma"]
    assert point["sensitivity"]["fraction"] == pytest.approx(called[truth].mean())
    assert point["specificity"]["fraction"] == pytest.approx((~called[~truth]).mean())
    text = " ".join(Page(Path(made["output"], HTML_FILE).read_text()).text.split())
    assert f"{len(flagged)} flagged" in text
    assert f"Flagged images : {len(flagged)} of {len(flagged)} are in the gallery" in text
    assert "flag: melanoma" in text
    assert (
        f"melanoma {point['true_positives']} {point['false_negatives']} "
        f"{point['false_positives']} {point['true_negatives']} " in text
    )


def test_flagged_images_of_all_groups_are_counted(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    made = lesioncam.report(write(tmp_path / "scores", with_flags(rows, 0.1)), gallery=32)
    report = made["report"]
    images = report["gallery"]["images"]
    groups = Counter(image["group"] for image in images if image.get("flagged"))
    assert groups["suspicious"] == 16
    shown = sum(groups.values())
    assert 16 < shown < report["images"]["flagged"]
    assert "are shown: 16 flagged of highest p_melanoma; " in report["gallery"]["rule"]
    page = Page(Path(made["output"], HTML_FILE).read_text())
    text = " ".join(page.text.split())
    flagged = report["images"]["flagged"]
    assert f"Flagged images : {shown} of {flagged} are in the gallery" in text
    assert ("a", "data-show", "flagged") in page.attributes
    assert sum(name == "data-flagged" for _, name, _ in page.attributes) == shown


def test_flags_that_are_null_are_none(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(54)))
    unflagged = write(tmp_path / "scores", with_flags(rows, None))
    made = lesioncam.report(unflagged, labels=labels, gallery=32)
    report = made["report"]
    assert report["images"]["flagged"] is None
    assert report["labeled"]["flags"] == {}
    groups = Counter(image["group"] for image in report["gallery"]["images"])
    assert groups["suspicious"] == 6
    assert "No flags" in Path(made["output"], HTML_FILE).read_text()


def test_a_labeled_image_without_a_flag_is_not_flagged(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    parts = with_flags(rows[:30]), with_flags(rows[30:], None)
    labels = write_labels(tmp_path / "labels.csv", list(range(54)))
    report = lesioncam.report(write(tmp_path / "scores", *parts), labels=labels)["report"]
    point = report["labeled"]["flags"]["melanoma"]
    found = point["true_positives"] + point["false_positives"]
    assert found == (rows["p_melanoma"][:30] >= 0.4).sum()


def test_where_nothing_stands_out_the_page_says_so(
    tmp_path: Path, no_pictures: None, no_plots: None
) -> None:
    rows = frame(tmp_path, 30, failed=0)
    rows[probability_columns(CLASSES, "stage2")] = rows[probability_columns(CLASSES, "stage1")]
    rows["flag_melanoma"] = False
    unflagged = table(rows)
    made = lesioncam.report(write(tmp_path / "scores", unflagged))
    assert made["report"]["images"]["flagged"] == 0
    assert "Nothing stands out" in Path(made["output"], HTML_FILE).read_text()


def test_kept_columns_of_such_names_are_no_flags(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    text = pa.array(["false"] * ROWS)
    kept = table(rows)
    for name in ("flag_melanoma", "quality"):
        kept = kept.set_column(kept.schema.get_field_index(name), name, text)
    report = lesioncam.report(write(tmp_path / "scores", kept))["report"]
    assert report["images"]["flagged"] is None
    assert report["quality"] is None


def test_scores_without_quality_are_reported(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    earlier = table(rows).drop_columns(["quality"])
    made = lesioncam.report(write(tmp_path / "scores", earlier))
    assert made["report"]["quality"] is None
    assert "Pictures with a quality remark" not in Path(made["output"], HTML_FILE).read_text()


def test_an_image_whose_quality_is_null_has_no_remark(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    rows.loc[0, "quality"] = None
    report = lesioncam.report(write(tmp_path / "scores", table(rows)))["report"]
    scored = [one for one in report["gallery"]["images"] if one["status"] == "ok"]
    assert [one["quality"] for one in scored] == [[]] * 54


def test_labels_add_figures_and_mistakes(
    scores: str, tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    labels = write_labels(tmp_path / "labels.csv", [*range(30), 57, 900])
    frame = pd.read_csv(labels, dtype={"image_id": str})
    frame.loc[[0, 4], ["melanoma", "seborrheic_keratosis"]] = [0, 0]  # 000 and 004 are nevi
    frame.to_csv(labels, index=False)
    made = lesioncam.report(scores, labels=labels, output=tmp_path / "report")
    assert made["output"] == str(tmp_path / "report")
    labeled = made["report"]["labeled"]
    assert labeled["images"]["evaluated"] == 30
    assert labeled["confusion"] == [[9, 0, 0], [0, 9, 0], [1, 1, 10]]
    expected = lesioncam.evaluate(scores, labels)["metrics"]
    assert labeled["metrics"]["final"] == expected["final"]
    assert {one["image_id"] for one in labeled["mistakes"]} == {"000", "004"}
    first, second = (one["probability"] for one in labeled["mistakes"])
    assert first >= second
    text = Path(made["output"], HTML_FILE).read_text()
    cards = re.findall(r"<article .*?>", text, re.DOTALL)
    wrong = {re.findall('data-name="(.+?)"', card)[0] for card in cards if "data-wrong" in card}
    assert wrong == {"000", "004"}  # not 057, which failed
    assert text.count('aria-label="ROC curve of ') == 3
    assert text.count('aria-label="Calibration of ') == 3


def test_subgroups_are_shown(
    tmp_path: Path,
    rows: pd.DataFrame,
    no_pictures: None,
    no_plots: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lesioncam.evaluation.subgroups.SMALL", 5)
    scores = write(tmp_path / "scores", with_flags(rows))
    labels = write_labels(tmp_path / "labels.csv", list(range(54)))
    metadata = tmp_path / "metadata.csv"
    sites = pd.DataFrame({"image_id": rows["image_id"][:50], "site": [HOSTILE, "arm"] * 25})
    sites.to_csv(metadata, index=False)
    made = lesioncam.report(scores, labels=labels, metadata=metadata, by=["site"])
    found = made["report"]["labeled"]["subgroups"]
    same = lesioncam.evaluate(scores, labels, metadata=metadata, by=["site"])["metrics"]
    assert found == same["subgroups"]
    page = Page(Path(made["output"], HTML_FILE).read_text())
    assert (page.tags["script"], page.tags["img"]) == (1, 0)
    text = " ".join(page.text.split())
    assert "an image is positive by flag_melanoma , p_seborrheic_keratosis >= 0.5 , p_nevus" in text
    assert "4 images have no row in the metadata; they are unknown ." in text
    between = found["columns"]["site"]["largest_difference"]["mean_auc"]
    assert f"difference in mean AUC: {with_interval(between, 'difference')}, " in text
    arm = found["columns"]["site"]["groups"]["arm"]["classes"]["melanoma"]
    cells = [
        f"{arm['positives']} of 25",
        with_interval(arm),
        *(with_interval(arm[name], "fraction") for name in ("sensitivity", "specificity")),
        with_interval(arm["calibration_error"], "error"),
    ]
    assert f"arm melanoma {' '.join(cells)} " in text
    assert f"{HOSTILE} melanoma" in text
    assert "unknown melanoma 1 of 4 (few)" in text


def test_without_metadata_there_are_no_subgroups(
    scores: str, tmp_path: Path, no_pictures: None, no_plots: None
) -> None:
    labels = write_labels(tmp_path / "labels.csv", list(range(54)))
    made = lesioncam.report(scores, labels=labels)
    assert made["report"]["labeled"]["subgroups"] is None
    assert "Subgroups" not in Path(made["output"], HTML_FILE).read_text()


def test_undefined_figures_are_said(
    scores: str, tmp_path: Path, no_pictures: None, no_plots: None
) -> None:
    labels = write_labels(tmp_path / "labels.csv", [0, 2, 3, 5])  # no seborrheic keratosis
    made = lesioncam.report(scores, labels=labels)
    labeled = made["report"]["labeled"]
    assert labeled["roc"]["seborrheic_keratosis"] is None
    text = Path(made["output"], HTML_FILE).read_text()
    assert "Undefined: all labeled images are of one side." in text
    assert text.count('aria-label="ROC curve of ') == 2


def test_scores_of_failed_images_only(tmp_path: Path) -> None:
    made = lesioncam.report(write(tmp_path / "scores", table(frame(tmp_path, 4, failed=4))))
    assert made["report"]["images"]["failed"] == 4
    assert made["report"]["classes"]["nevus"]["final"]["mean"] is None
    text = " ".join(Page(Path(made["output"], HTML_FILE).read_text()).text.split())
    assert "4 failed" in text
    assert "No picture: failed, truncated" in text


def test_the_mean_of_many_images_is_exact(
    tmp_path: Path, rows: pd.DataFrame, no_pictures: None, no_plots: None
) -> None:
    rows.loc[0, probability_columns(CLASSES)] = [0.1, 0.2, 0.7]
    same = table(rows[:1]).take(pa.array(np.zeros(50_000, int)))
    report = lesioncam.report(write(tmp_path / "scores", same), gallery=0)["report"]
    means = [report["classes"][name]["final"]["mean"] for name in CLASSES]
    assert means == pytest.approx([0.1, 0.2, 0.7], abs=1e-6)


def test_memory_holds_some_rows_and_no_maps(
    scores: str, no_pictures: None, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.storage.results._BATCH_ROWS", 10)
    seen = []
    stream = Results.stream

    def watched(self: Results, columns: list[str]) -> Any:
        assert "cam" not in columns
        for part, numbers, batch in stream(self, columns):
            seen.append(batch.num_rows)
            yield part, numbers, batch

    monkeypatch.setattr(Results, "stream", watched)
    lesioncam.report(scores, gallery=3)
    assert (sum(seen), max(seen)) == (ROWS, 10)


def test_bad_input_is_refused_before_anything_is_written(
    scores: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--scores", scores, "--gallery", "1001"]) == 2
    assert "lesioncam: --gallery is 1001; it should be from 0 to 1000" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^scores: no Parquet in"):
        lesioncam.report(tmp_path / "nothing")
    assert main(["report", "--scores", scores, "--metadata", "m.csv", "--by", "sex"]) == 2
    assert "--metadata: groups are compared with labels; name them as" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^by is 'sex'; it should be a list of names"):
        lesioncam.report(scores, metadata="m.csv", by="sex")
    labels = write_labels(tmp_path / "labels.csv", [900])
    with pytest.raises(InputError, match=r"^labels: none of its 1 ids is an image_id"):
        lesioncam.report(scores, labels=labels)
    assert not Path(scores, "_report").exists()


def test_the_command_prints_where_the_report_is(
    scores: str, capsys: pytest.CaptureFixture[str], no_pictures: None, no_plots: None
) -> None:
    assert main(["report", "--scores", scores]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "60 images: 6 failed, 11 whose stages disagree",
        f"report: {scores}/_report/report.html",
    ]
