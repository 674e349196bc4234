from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import Outcome, box_overlaps, compare


@pytest.fixture
def outcome() -> Outcome:
    random = np.random.default_rng(0)
    low = random.uniform(0, 0.4, (10, 2))
    return Outcome(
        names=[f"{number}.jpg" for number in range(10)],
        probabilities=random.dirichlet([1, 1, 1], 10),
        boxes=np.concatenate([low, low + 0.4], axis=1),
    )


def test_the_same_outcome_is_the_same_work(outcome: Outcome) -> None:
    found = compare(outcome, outcome)
    assert found.same_work
    assert found.images == 10
    assert found.largest_difference == 0
    assert found.least_overlap == pytest.approx(1)


def test_other_probabilities_are_other_work(outcome: Outcome) -> None:
    other = replace(outcome, probabilities=outcome.probabilities[:, [1, 2, 0]])
    assert not compare(outcome, other).same_work


def test_other_boxes_are_other_work(outcome: Outcome) -> None:
    other = replace(outcome, boxes=outcome.boxes + 0.1)
    found = compare(outcome, other)
    assert found.largest_difference == 0
    assert not found.same_work


def test_fewer_images_are_compared_by_name(outcome: Outcome) -> None:
    part = Outcome(outcome.names[4:7], outcome.probabilities[4:7], outcome.boxes[4:7])
    found = compare(outcome, part)
    assert (found.images, found.same_work) == (3, True)
    with pytest.raises(ValueError, match=r"got \['0.jpg'"):
        compare(part, outcome)


def test_an_outcome_has_each_image_of_a_directory_once(outcome: Outcome, tmp_path: Path) -> None:
    for name in outcome.names:
        (tmp_path / name).touch()
    outcome.check_complete(tmp_path)
    for names in (outcome.names[1:], [*outcome.names, outcome.names[-1]]):
        with pytest.raises(ValueError, match=f"expected 10 images of .*, got {len(names)} rows"):
            replace(outcome, names=names).check_complete(tmp_path)


def test_overlap_of_boxes_by_hand() -> None:
    first = np.array([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]])
    second = np.array([[1.0, 0, 3, 2], [0, 0, 1, 1], [2, 2, 3, 3]])
    np.testing.assert_allclose(box_overlaps(first, second), [1 / 3, 1, 0])
