"""Small training runs that tests ask for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import load_bundle
from lesioncam.training.job import TrainRequest

SMALL = TrainSettings(
    backbone="tiny",
    stage1_epochs=2,
    stage2_epochs=1,
    batch_size=7,  # which two workers cannot halve
    learning_rate=0.02,
    dropout=0.0,
    val_fraction=0.25,
)


def request(drawn: Path, bundle: Path | str, **changes: Any) -> TrainRequest:
    settings = replace(SMALL, **changes.pop("settings", {}))
    places = (f"{drawn}/images", f"{drawn}/train.csv", str(bundle))
    return TrainRequest(*places, settings, masks=f"{drawn}/masks", **changes)


def history(bundle: Path | str, stage: str = "stage1") -> list[dict[str, float]]:
    entries: list[dict[str, float]] = load_bundle(str(bundle)).training[stage]["history"]
    return entries


def weights(bundle: Path) -> dict[str, str]:
    """The digests of both stages' weights."""
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
