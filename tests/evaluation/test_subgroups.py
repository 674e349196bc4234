"""Figures of groups against those of all images and by hand, and the difference between groups."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesioncam.errors import InputError
from lesioncam.evaluation.curves import difference
from lesioncam.evaluation.subgroups import (
    SMALL,
    GroupBy,
    Images,
    subgroup_figures,
    subgroup_tables,
    subgroups,
)
from lesioncam.vision import metrics
from lesioncam.vision.metrics import evaluate_stages
from tests.conftest import CLASSES

TARGETS = CLASSES[:2]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 400)


def labeled_rows(count: int = 240, noise: float = 1.0) -> pd.DataFrame:
    """Rows as `read_labeled` gives them, of classes in rotation."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    raw = np.exp(np.eye(3)[labels] + random.normal(0, noise, (count, 3)))
    raw /= raw.sum(axis=1, keepdims=True)
    rows = pd.DataFrame(raw, columns=[f"p_{name}" for name in CLASSES])
    return rows.assign(label=labels, image_id=[f"I{number}" for number in range(count)])


def images_of(rows: pd.DataFrame) -> Images:
    return Images.of(rows, CLASSES, TARGETS, {})


def split(*groups: str) -> dict[str, dict[str, np.ndarray]]:
    """A column `c` of which each image has the value that is given for it."""
    values = np.array(groups)
    return {"c": {name: values == name for name in dict.fromkeys(groups)}}


def test_a_group_of_all_images_has_their_figures() -> None:
    rows = labeled_rows()
    images = images_of(rows)
    stages = dict.fromkeys(("stage1", "stage2", "final"), images.probabilities)
    expected = evaluate_stages(stages, images.labels, CLASSES, TARGETS)["final"]
    found = subgroup_figures(images, split(*["all"] * len(rows)))
    group = found["columns"]["c"]["groups"]["all"]
    assert group["n"] == 240
    for name in CLASSES:
        one = group["classes"][name]
        for key in ("auc", "low", "high", "positives"):
            assert one[key] == pytest.approx(expected[name][key])
        for key in ("sensitivity", "specificity"):
            assert one[key]["fraction"] == pytest.approx(expected[name][key])
            assert one[key]["low"] < one[key]["fraction"] < one[key]["high"]
        assert one["calibration_error"] == expected[name]["calibration_error"]
        assert not one["small"]
    assert group["mean"]["auc"] == pytest.approx(expected["mean"]["auc"])
    assert group["mean"]["low"] == pytest.approx(expected["mean"]["low"])
    assert group["mean"]["classes"] == list(TARGETS)
    assert found["columns"]["c"]["largest_difference"]["mean_auc"] is None


def test_each_group_is_of_its_own_images() -> None:
    rows = pd.DataFrame(
        {
            "p_melanoma": [0.6, 0.5, 0.2, 0.9],
            "p_seborrheic_keratosis": [0.2, 0.2, 0.2, 0.05],
            "p_nevus": [0.2, 0.3, 0.6, 0.05],
            "label": [2, 0, 2, 0],
        }
    )
    found = subgroup_figures(images_of(rows), split("a", "a", "a", "b"))
    first, second = found["columns"]["c"]["groups"].values()
    melanoma = first["classes"]["melanoma"]
    assert (first["n"], melanoma["positives"], melanoma["auc"]) == (3, 1, 0.5)
    assert (melanoma["sensitivity"]["fraction"], melanoma["sensitivity"]["n"]) == (1.0, 1)
    assert (melanoma["specificity"]["fraction"], melanoma["specificity"]["n"]) == (0.5, 2)
    assert melanoma["calibration_error"]["error"] == pytest.approx((0.6 + 0.5 + 0.2) / 3)
    assert second["classes"]["melanoma"]["auc"] is None  # all images of b are melanomas
    assert second["classes"]["melanoma"]["specificity"]["fraction"] is None
    assert first["mean"]["auc"] is None  # no seborrheic keratosis
    assert found["columns"]["c"]["largest_difference"] == {
        "mean_auc": None,
        "sensitivity": dict.fromkeys(CLASSES),
    }


@pytest.mark.parametrize(("positives", "small"), [(SMALL, False), (SMALL - 1, True)])
def test_a_group_with_few_images_of_a_class_is_small(positives: int, small: bool) -> None:
    rows = labeled_rows(60)
    rows["label"] = np.where(np.arange(60) < positives, 0, 1 + np.arange(60) % 2)
    found = subgroup_figures(images_of(rows), split(*["all"] * 60))
    group = found["columns"]["c"]["groups"]["all"]
    assert group["classes"]["melanoma"]["small"] == group["mean"]["small"] == small
    assert not group["classes"]["nevus"]["small"]
    melanoma = group["classes"]["melanoma"]
    for one in (melanoma, melanoma["calibration_error"], group["mean"]):
        assert one.get("auc", one.get("error")) is not None
        assert [one["low"] is None, one["high"] is None] == [small, small]
    assert ("(few)" in subgroup_tables(found)[4]) == small


def test_flags_decide_where_they_have_a_value() -> None:
    rows = labeled_rows(60)
    empty = pd.Series([None] * 60, dtype=object)
    flags = pd.Series([True, *[None] * 29, *[False] * 30], dtype=object)
    flagged = rows.assign(flag_melanoma=flags, flag_nevus=empty)
    columns = {"melanoma": "flag_melanoma", "nevus": "flag_nevus"}
    images = Images.of(flagged, CLASSES, TARGETS, columns)
    assert images.decisions == {
        "melanoma": "flag_melanoma",
        "seborrheic_keratosis": "p_seborrheic_keratosis >= 0.5",
        "nevus": "p_nevus >= 0.5",
    }
    assert np.flatnonzero(images.called[:, 0]).tolist() == [0]
    assert (images.called[:, 1:] == (images.probabilities[:, 1:] >= 0.5)).all()
    assert images_of(rows).decisions["melanoma"] == "p_melanoma >= 0.5"


def test_groups_are_resampled_by_themselves() -> None:
    """Two groups of the same probabilities differ by nothing, but not surely by nothing."""
    rows = labeled_rows(240)
    twice = images_of(pd.concat([rows, rows]))
    found = subgroup_figures(twice, split(*["a"] * 240, *["b"] * 240))["columns"]["c"]
    one, other = (found["groups"][name]["mean"] for name in "ab")
    between = found["largest_difference"]["mean_auc"]
    assert between["difference"] == 0
    assert between["low"] < 0 < between["high"]
    assert (one["low"], one["high"]) != (other["low"], other["high"])
    width = between["high"] - between["low"]
    assert width == pytest.approx(2**0.5 * (one["high"] - one["low"]), rel=0.2)


def test_the_largest_difference_is_of_groups_that_can_be_compared() -> None:
    better, worse = labeled_rows(240, noise=0.5), labeled_rows(240, noise=2.0)
    rows = pd.concat([better, worse, labeled_rows(240, noise=9.0), labeled_rows(12, noise=9.0)])
    groups = [*["better"] * 240, *["worse"] * 240, *["unknown"] * 240, *["small"] * 12]
    found = subgroup_figures(images_of(rows), split(*groups))["columns"]["c"]
    figures, between = found["groups"], found["largest_difference"]
    mean = between["mean_auc"]
    assert (mean["highest"], mean["lowest"]) == ("better", "worse")
    expected = figures["better"]["mean"]["auc"] - figures["worse"]["mean"]["auc"]
    assert mean["difference"] == pytest.approx(expected)
    assert 0 < mean["low"] < mean["difference"] < mean["high"]
    for name in CLASSES:
        one = between["sensitivity"][name]
        pair = [figures[one[key]]["classes"][name]["sensitivity"] for key in ("highest", "lowest")]
        assert pair[0]["fraction"] >= pair[1]["fraction"]
        assert {one["highest"], one["lowest"]} == {"better", "worse"}
        expected_difference = difference(*pair)
        assert {key: one[key] for key in expected_difference} == expected_difference


def test_models_of_different_folds_are_not_ranked_against_each_other() -> None:
    rows = labeled_rows(120)
    rows[[f"p_{name}" for name in CLASSES]] += (np.arange(120) < 60)[:, None] * 5.0
    images = images_of(rows)
    apart = replace(images, folds=np.arange(120) // 60)
    pooled, by_fold = (
        subgroup_figures(one, split(*["all"] * 120))["columns"]["c"]["groups"]["all"]["mean"]
        for one in (images, apart)
    )
    assert by_fold["auc"] > pooled["auc"]


def test_images_without_a_row_are_unknown(tmp_path: Path) -> None:
    rows = labeled_rows(60)
    sexes = [*["f", "m", "unknown"] * 19, "f", "m"]
    table = pd.DataFrame({"image_id": rows["image_id"][1:], "sex": sexes})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "meta.csv", index=False)
    group_by = GroupBy(f"{tmp_path}/meta.csv", ("sex",), None)
    found = subgroups(images_of(rows), rows["image_id"], group_by)
    groups = found["columns"]["sex"]["groups"]
    assert {name: group["n"] for name, group in groups.items()} == {"f": 20, "m": 20, "unknown": 20}
    assert found["images_without_metadata"] == 1
    assert groups["f"]["classes"]["seborrheic_keratosis"]["positives"] == 20  # 1, 4, 7 and so on


def test_the_table_has_every_figure() -> None:
    rows = labeled_rows(120)
    names = ["a|b\nc"] * 60 + ["d"] * 60
    figures = subgroup_figures(images_of(rows), split(*names))
    table = subgroup_tables(figures)
    assert table[0].endswith(", p_nevus >= 0.5.")
    rows_of_table = [line for line in table if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows_of_table}) == 1
    one = figures["columns"]["c"]["groups"]["d"]["classes"]["nevus"]
    cells = [
        f"{one['auc']:.3f} ({one['low']:.3f} to {one['high']:.3f})",
        *(
            f"{one[name][key]:.3f} ({one[name]['low']:.3f} to {one[name]['high']:.3f})"
            for name, key in (
                ("sensitivity", "fraction"),
                ("specificity", "fraction"),
                ("calibration_error", "error"),
            )
        ),
    ]
    assert f"| d | nevus | 20 of 60 | {' | '.join(cells)} |" in table
    assert any(line.startswith("| a\\|b c | mean (melanoma, seb") for line in table)
    between = figures["columns"]["c"]["largest_difference"]["mean_auc"]
    text = f"{between['difference']:.3f} ({between['low']:.3f} to {between['high']:.3f})"
    (line,) = (line for line in table if "in mean AUC" in line)
    assert line.startswith(f"- Largest difference in mean AUC: {text}, ")


@pytest.mark.parametrize(
    ("metadata", "by", "message"),
    [
        (None, ["sex"], "--by: .* name the table as --metadata"),
        ("m.csv", [], "--metadata: name its columns .* as --by"),
        ("m.csv", ["sex", ""], "--by: a name is empty"),
        ("m.csv", ["sex", "sex"], "--by: a column is named twice"),
    ],
)
def test_what_to_group_by_is_said_whole(metadata: str | None, by: list[str], message: str) -> None:
    assert GroupBy.of(None, [], "id") is None
    with pytest.raises(InputError, match=message):
        GroupBy.of(metadata, by, None)
