"""AUC against scikit-learn and by hand, intervals, and the tables of both."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lesioncam.vision import metrics
from lesioncam.vision.metrics import _weighted_auc, auc, evaluate_stages, markdown_table, mean_auc

CLASSES = ("a", "b", "rest")


def test_auc_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert auc(scores, np.array([False, False, True, True])) == pytest.approx(0.75)
    assert auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5  # a tie counts half


def test_bootstrap_auc_is_that_of_scikit_learn_with_ties_and_weights() -> None:
    random = np.random.default_rng(0)
    for levels in (3, 8, 10**6):
        scores = random.integers(0, levels, 60) / levels
        positive = random.random(60) < 0.3
        weights = random.integers(0, 4, (20, 60)).astype(float)
        expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
        assert _weighted_auc(scores, positive, weights) == pytest.approx(expected, abs=1e-12)
        (plain,) = _weighted_auc(scores, positive, np.ones((1, 60)))
        assert auc(scores, positive) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_auc_of_a_score_that_is_not_finite_is_undefined(bad: float) -> None:
    scores, positive = np.array([0.1, bad, 0.9]), np.array([False, True, True])
    assert auc(scores, positive) is None
    assert np.isnan(_weighted_auc(scores, positive, np.ones((1, 3)))).all()


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_auc_of_one_class_is_undefined(positive: list[bool]) -> None:
    assert auc(np.array([0.1, 0.9]), np.array(positive)) is None


def test_a_mean_with_an_undefined_class_is_undefined() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert mean_auc(probabilities, np.array([0, 0]), [0, 1]) is None


def random_stages(n: int = 120) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, n)
    truth = np.eye(3)[labels]
    stages = {}
    for stage, noise in (("stage1", 2.0), ("stage2", 1.0), ("final", 0.8)):
        raw = np.exp(truth + random.normal(0, noise, (n, 3)))
        stages[stage] = raw / raw.sum(axis=1, keepdims=True)
    return stages, labels


def test_figures_are_consistent() -> None:
    stages, labels = random_stages()
    figures = evaluate_stages(stages, labels, CLASSES, ("a", "b"))
    for stage in ("stage1", "stage2", "final"):
        for name in (*CLASSES, "mean"):
            entry = figures[stage][name]
            assert entry["low"] < entry["auc"] < entry["high"]
            assert entry["n"] == 120
        one, other = (figures[stage][name]["auc"] for name in ("a", "b"))
        assert figures[stage]["mean"]["auc"] == pytest.approx((one + other) / 2)
        assert figures[stage]["a"]["positives"] == (labels == 0).sum()
    gain = figures["final"]["mean"]["auc"] - figures["stage1"]["mean"]["auc"]
    assert figures["gain"]["auc"] == pytest.approx(gain)
    assert 0 < figures["gain"]["low"] < gain < figures["gain"]["high"]


def test_intervals_do_not_depend_on_the_memory_they_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages, labels = random_stages()
    monkeypatch.setattr(metrics, "RESAMPLES", 250)
    monkeypatch.setattr(metrics, "_WEIGHTS", 30 * len(labels))  # blocks of 30, the last of 10
    entry = evaluate_stages(stages, labels, CLASSES, ("a",))["final"]["a"]
    assert entry["low"] < entry["auc"] < entry["high"]


def test_models_of_different_folds_are_not_ranked_against_each_other() -> None:
    labels = np.tile([0, 1, 2], 20)
    folds = np.repeat([0, 1], 30)
    truth = np.eye(3)[labels] * 0.2
    shifted = {"stage1": truth, "stage2": truth, "final": truth + folds[:, None] * 0.5}
    pooled = evaluate_stages(shifted, labels, CLASSES, ("a", "b"))
    apart = evaluate_stages(shifted, labels, CLASSES, ("a", "b"), folds=folds)
    assert pooled["final"]["mean"]["auc"] == pytest.approx(0.75)
    assert (apart["final"]["mean"]["auc"], apart["final"]["mean"]["n"]) == (1.0, 60)
    assert apart["gain"]["auc"] == 0.0


def test_a_class_missing_from_a_fold_has_no_auc() -> None:
    stages, labels = random_stages()
    folds = np.where(labels == 0, 0, np.arange(len(labels)) % 2)
    figures = evaluate_stages(stages, labels, CLASSES, ("a", "b"), folds=folds)
    assert figures["final"]["a"]["auc"] is None
    assert figures["final"]["b"]["auc"] is not None


def test_gain_is_paired() -> None:
    stages, labels = random_stages()
    same = dict.fromkeys(stages, stages["stage1"])
    gain = evaluate_stages(same, labels, CLASSES, ("a", "b"))["gain"]
    assert gain == {"auc": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("models", [1, 3])
def test_intervals_are_as_wide_as_aucs_of_new_images_spread(
    models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 200)
    random = np.random.default_rng(2)
    labels, folds = np.tile([0, 1], 90), np.repeat(np.arange(models), 180 // models)
    found, low, high = np.transpose(
        [simulated_auc(random, labels, folds, trial) for trial in range(80)]
    )
    spread = (high - low) / (2 * 1.96)
    assert spread.mean() == pytest.approx(found.std(), rel=0.2)
    true = 0.7602  # Phi(1 / sqrt 2)
    assert 0.89 <= ((low <= true) & (true <= high)).mean() <= 0.99


def simulated_auc(
    random: np.random.Generator, labels: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """The AUC and its interval of normal scores whose means are one deviation apart.

    Each fold's model has an offset of its own.
    """
    scores = random.normal(labels == 0, 1) + 5 * folds
    stages = dict.fromkeys(("stage1", "stage2", "final"), np.stack([scores, -scores], axis=1))
    figures = evaluate_stages(stages, labels, ("x", "y"), ("x",), seed, folds=folds)
    entry = figures["final"]["x"]
    return entry["auc"], entry["low"], entry["high"]


def test_sensitivity_and_specificity_by_hand() -> None:
    stage = np.array([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    labels = np.array([0, 0, 2, 2])
    figures = evaluate_stages(
        dict.fromkeys(("stage1", "stage2", "final"), stage), labels, CLASSES, ("a", "b")
    )["final"]
    assert (figures["a"]["sensitivity"], figures["a"]["specificity"]) == (0.5, 0.5)
    assert (figures["b"]["sensitivity"], figures["b"]["specificity"]) == (None, 0.75)
    assert figures["b"]["auc"] is figures["b"]["low"] is figures["mean"]["auc"] is None


def test_table_shows_undefined_figures_and_the_classes_of_the_mean() -> None:
    stage = np.array([[0.6, 0.4], [0.4, 0.6]])
    same = dict.fromkeys(("stage1", "stage2", "final"), stage)
    table = "\n".join(markdown_table(evaluate_stages(same, np.array([0, 0]), ("a", "b"), ("a",))))
    assert "| a | 2 of 2 | undefined | undefined | undefined |" in table
    assert "| mean (a) |  | undefined | undefined | undefined |" in table
