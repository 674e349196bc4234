from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.subgroups import figures_of
from lesioncam.errors import InputError
from lesioncam.storage.labels import read_labels


def test_groups_are_of_all_folds(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image_id,a,b\nA,1,0\nB,0,1\nC,0,0\n")
    labels = read_labels(f"{tmp_path}/labels.csv", "rest")
    names = [f"I{number}" for number in range(60)]
    meta = pd.DataFrame({"image_id": names, "sex": np.where(np.arange(60) % 2, "f", "m")})
    meta.to_csv(tmp_path / "meta.csv", index=False)
    with pytest.raises(InputError, match=r"--predictions: .* has no folds"):
        figures_of(tmp_path, labels, f"{tmp_path}/meta.csv", ["sex"])
    for fold, offset in ((0, 0.0), (1, 0.5)):  # each fold's model ranks its own images right
        rows = pd.DataFrame(np.tile(np.eye(3), (10, 1)) + offset, columns=["p_a", "p_b", "p_rest"])
        rows["image_id"], rows["label"] = names[30 * fold :][:30], np.tile(labels.classes, 10)
        rows.to_csv(tmp_path / f"fold{fold}.csv", index=False)
    figures = figures_of(tmp_path, labels, f"{tmp_path}/meta.csv", ["sex"])
    groups = figures["columns"]["sex"]["groups"]
    assert {name: one["n"] for name, one in groups.items()} == {"f": 30, "m": 30}
    for one in groups.values():
        assert one["mean"]["auc"] == 1.0
        assert one["classes"]["a"]["specificity"]["fraction"] == 0.5
