from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import SIZES, Collection, alarms, shifted, stability_index

PREDICTIONS = Path(__file__).parents[2] / "docs" / "cross-validation"


def test_runs_have_the_collections_mix_of_classes() -> None:
    collection = Collection(PREDICTIONS)
    assert collection.classes == ("melanoma", "seborrheic_keratosis", "nevus")
    np.testing.assert_allclose(collection.fractions, np.array([374, 254, 1371]) / 1999)
    run = collection.run(np.random.default_rng(0), 500, collection.fractions)
    assert run.shape == (500, 3)
    np.testing.assert_allclose(run.sum(axis=1), 1, atol=1e-4)


def test_a_large_change_is_found_and_none_is_not() -> None:
    collection, random = Collection(PREDICTIONS), np.random.default_rng(0)
    none, *_, large = collection.changes()
    assert [alarms(collection, none, SIZES[-1], random)[0] for _ in range(5)] == [False] * 5
    assert alarms(collection, large, SIZES[-1], random) == (True, True, True)


def test_shifted_logits_are_those_of_a_softmax() -> None:
    found = shifted(np.array([[0.5, 0.25, 0.25]]), np.log([2, 1, 1]))
    np.testing.assert_allclose(found, [[2 / 3, 1 / 6, 1 / 6]])


def test_the_stability_index_of_equal_samples_is_zero() -> None:
    values = np.linspace(0, 1, 1000)
    assert stability_index(values, values) == 0
    assert stability_index(values**2, values) == pytest.approx(0.28, abs=0.1)
