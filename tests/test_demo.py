import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lesioncam import demo
from lesioncam.cli import main


@pytest.mark.usefixtures("local_ray")
def test_a_smaller_demo_runs_and_a_second_run_repeats_nothing(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def train(images: Path, labels: Path, bundle: Path, **_: Any) -> None:  # `make demo` trains
        assert len(list(images.iterdir())) == len(pd.read_csv(labels)) == 36
        shutil.copytree(bundle_uri, bundle)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAINING_IMAGES", 36)
    monkeypatch.setattr(demo, "TEST_IMAGES", 12)
    monkeypatch.setattr(demo, "train", train)
    assert main(["demo"]) == 0
    summary = "15 images: 12 scored, 3 failed (see error_kind)"
    assert summary in capsys.readouterr().out
    folder = tmp_path / "lesioncam-demo"
    scores = pd.read_parquet(folder / "scores")
    assert scores["status"].value_counts().to_dict() == {"ok": 12, "failed": 3}
    written = {path: path.stat().st_mtime for path in (folder / "bundle").iterdir()}
    assert main(["demo"]) == 0
    assert summary in capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in written} == written
    assert set(pd.read_parquet(folder / "scores")["run_id"]) == set(scores["run_id"])
