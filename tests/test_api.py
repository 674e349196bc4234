from typing import Any

import pytest

import lesioncam
from lesioncam.errors import InputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "limit is 0; it should be at least 1"),
        ({"precision": "float16"}, "precision is 'float16'; it should be one of auto, float32"),
        ({"gpus": -1}, "gpus is -1; it should be at least 0"),
        ({"max_failed_fraction": 5}, "max_failed_fraction is 5; it should be from 0 to 1"),
    ],
)
def test_score_refuses_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lesioncam.score("images", "scores", bundle="model", **values)


def test_train_and_evaluate_refuse_bad_values() -> None:
    with pytest.raises(InputError, match="workers is 0; it should be at least 1"):
        lesioncam.train("images", "labels.csv", "model", workers=0)
    with pytest.raises(InputError, match="overlays is -1; it should be at least 0"):
        lesioncam.evaluate("scores", "labels.csv", overlays=-1)
