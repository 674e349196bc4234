from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lesioncam import demo
from lesioncam.cli import main


@pytest.mark.usefixtures("local_ray")
def test_a_smaller_demo_runs_in_the_directory_one_is_in_and_once_more_does_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAINING_IMAGES", 36)
    monkeypatch.setattr(demo, "TEST_IMAGES", 12)
    short = replace(demo.SETTINGS, stage1_epochs=1, stage2_epochs=1)
    monkeypatch.setattr(demo, "SETTINGS", short)
    assert main(["demo"]) == 0
    told = "15 images listed, 12 scored, 3 broken ones told in their rows"
    assert told in capsys.readouterr().out
    place = tmp_path / "lesioncam-demo"
    scores = pd.read_parquet(place / "scores")
    assert scores["status"].value_counts().to_dict() == {"ok": 12, "failed": 3}
    made = {path: path.stat().st_mtime for path in (place / "bundle").iterdir()}
    assert main(["demo"]) == 0
    assert told in capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in made} == made
    assert set(pd.read_parquet(place / "scores")["run_id"]) == set(scores["run_id"])
