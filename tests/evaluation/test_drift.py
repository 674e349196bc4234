"""Drift: distances worked by hand, what the threshold is made of, and what is refused."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, kstwobign

from lesioncam.errors import InputError
from lesioncam.evaluation.drift import ALPHA, MIN_DISTANCE, drift


def rows(
    melanoma: Sequence[float] | np.ndarray, run: str = "run-1", model: str = "a"
) -> pd.DataFrame:
    values = np.asarray(melanoma, np.float32)
    named = {"p_melanoma": values, "p_nevus": 1 - values, "stage1_p_melanoma": 0.5}
    return pd.DataFrame(named).assign(run_id=run, model=model)


def runs(*samples: np.ndarray) -> pd.DataFrame:
    return pd.concat([rows(sample, f"run-{number}") for number, sample in enumerate(samples)])


def uniform(count: int, low: float = 0, high: float = 1) -> np.ndarray:
    """So many values, evenly spread."""
    return np.linspace(low, high, count)


def test_the_distance_is_the_largest_difference_of_fractions() -> None:
    # At 0.4 all of the current images are below, and one of four earlier ones.
    found = drift(rows([0.1, 0.2, 0.4]), rows([0.3, 0.6, 0.8, 0.9]))
    assert list(found.index) == ["melanoma", "nevus"]
    assert found["distance"].tolist() == [0.75, 0.75]
    assert found[["images", "earlier_images"]].to_numpy().tolist() == [[3, 4]] * 2
    assert found.loc["melanoma", "mean"] == pytest.approx(0.7 / 3)
    assert found.loc["melanoma", "earlier_mean"] == pytest.approx(0.65)


@pytest.mark.parametrize("digits", [1, 6])  # one digit: many equal values
def test_the_distance_is_scipys(digits: int) -> None:
    random = np.random.default_rng(digits)
    for sizes in ((1, 7), (40, 9), (300, 500)):
        one, other = (random.beta(2, 5, size).round(digits) for size in sizes)
        found = drift(rows(one), rows(other))["distance"]["melanoma"]
        expected = ks_2samp(rows(one)["p_melanoma"], rows(other)["p_melanoma"], method="asymp")
        assert found == pytest.approx(expected.statistic)


def test_few_images_need_a_larger_distance() -> None:
    found = drift(rows(uniform(50)), rows(uniform(200)))
    error = kstwobign.isf(ALPHA / 2) * (1 / 50 + 1 / 200) ** 0.5

    assert found["threshold"].tolist() == pytest.approx([MIN_DISTANCE + error] * 2)
    assert error > 0.2
    assert not found["drifted"].any()


def test_many_images_need_a_distance_that_matters() -> None:
    earlier = rows(uniform(100_000))
    slightly, clearly = (drift(rows(uniform(100_000, low)), earlier) for low in (0.06, 0.12))
    assert slightly["threshold"].tolist() == clearly["threshold"].tolist()
    assert MIN_DISTANCE < slightly["threshold"]["melanoma"] < MIN_DISTANCE + 0.01
    assert slightly["distance"]["melanoma"] == pytest.approx(0.06, abs=1e-3)
    assert not slightly["drifted"].any()
    assert clearly["drifted"].all()


def test_what_has_always_differed_between_runs_is_no_drift() -> None:
    low, high = uniform(1000, 0, 0.7), uniform(1000, 0.3, 1)
    alike, mixed = runs(low, low, low, low), runs(low, high, low, high)
    assert drift(rows(high), alike)["drifted"].all()
    found = drift(rows(high), mixed)
    assert not found["drifted"].any()
    # One earlier run from the three others, as a test of two samples has it.
    expected = ks_2samp(low, np.concatenate([high, low, high]), method="asymp").statistic
    error = kstwobign.isf(ALPHA / 2) * (1 / 1000 + 1 / 4000) ** 0.5
    assert found["threshold"]["melanoma"] == pytest.approx(expected + error)


def test_a_small_earlier_run_does_not_raise_the_threshold() -> None:
    earlier = runs(uniform(2000), uniform(2000), uniform(20, 0.8, 1))
    error = kstwobign.isf(ALPHA / 2) * (1 / 2000 + 1 / 4020) ** 0.5
    found = drift(rows(uniform(2000)), earlier)["threshold"]
    assert found.tolist() == pytest.approx([MIN_DISTANCE + error] * 2)


def test_failed_images_are_ignored() -> None:
    current, earlier = rows(uniform(300)), rows(uniform(600))
    failed = current.assign(p_melanoma=None, p_nevus=None)
    with_failed = pd.concat([current, failed]).astype({"p_melanoma": float, "p_nevus": float})
    pd.testing.assert_frame_equal(drift(with_failed, earlier), drift(current, earlier))


def test_random_halves_of_a_collection_have_not_drifted() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        everything = random.permutation(random.beta(1, 4, 800))
        assert not drift(rows(everything[:200]), runs(*everything[200:].reshape(3, 200)))[
            "drifted"
        ].any()


def test_what_cannot_be_compared_is_refused() -> None:
    some = rows(uniform(9))
    with pytest.raises(InputError, match="the rows are of 2 models; compare runs of one model"):
        drift(some, rows(uniform(9), model="b"))
    with pytest.raises(InputError, match="the current rows have no scored image"):
        drift(some[:0], some)
    with pytest.raises(InputError, match="the earlier rows have no scored image"):
        drift(some, some[:0])
