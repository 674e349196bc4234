"""Reads and compares what scoring runs wrote."""

from pathlib import Path

import numpy as np
import pandas as pd

from lesioncam.columns import BOX_COLUMNS, STAGE_PREFIXES

_EXACT = ("status", "error_kind", "prediction", "width", "height", *BOX_COLUMNS, "model", "cam",
          "cam_flat", "quality")  # fmt: skip


def read_scores(output: Path | str) -> pd.DataFrame:
    """The rows of a local output, by their `uri`."""
    return pd.read_parquet(output).set_index("uri").sort_index()


def assert_same_scores(rows: pd.DataFrame, expected: pd.DataFrame, by: str = "uri") -> None:
    """The rows are of the same images with equal results; probabilities to 1e-5.

    Args:
        rows: of `score`.
        expected: rows of another run on the same images.
        by: the column that names an image in both.
    """
    here, there = (frame.sort_values(by, ignore_index=True) for frame in (rows, expected))
    assert here[by].tolist() == there[by].tolist()
    for name in _EXACT:
        pd.testing.assert_series_equal(here[name], there[name])
    names = [name for name in there if str(name).startswith(tuple(STAGE_PREFIXES.values()))]
    assert names
    np.testing.assert_allclose(here[names], there[names], rtol=0, atol=1e-5)
