import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.isic2017 import collections_of, draw_forms, lay_out, main
from lesioncam.storage.labels import LabelColumns, read_labels

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")


def write_source(folder: Path) -> None:
    """30 training images, ten a class, and 3 validation images; a few have the first form only."""
    random = np.random.default_rng(0)
    for official, split, count in (("Training", "train", 30), ("Validation", "val", 3)):
        names = [f"{split}{number:02d}" for number in range(count)]
        labels = pd.DataFrame({"image_id": names})
        for index, name in enumerate(CLASSES[:2]):
            labels[name] = (labels.index % 3 == index).astype(float)
        labels.to_csv(folder / f"ISIC-2017_{official}_Part3_GroundTruth.csv", index=False)
        few = {"train01", "train04", "train07", "train10", "train00", "val02"}
        for form, have in (("256", names), ("512", [n for n in names if n not in few])):
            (folder / f"images_{form}" / split).mkdir(parents=True)
            (folder / f"masks_{form}").mkdir(exist_ok=True)
            for name in have:
                pixels = random.integers(0, 256, (4, 4, 3), np.uint8)
                picture = Image.fromarray(pixels).resize((int(form), int(form)))
                picture.save(folder / f"images_{form}" / split / f"{name}.jpg")
                (folder / f"masks_{form}" / f"{name}.png").write_text(f"{form} {name}")


def test_each_class_has_the_same_fraction_of_each_form() -> None:
    classes = np.repeat([0, 1, 2], [100, 50, 200])
    both = np.ones(350, bool)
    both[100:120] = False  # 40 % of the second class
    both[[0, 1, 200]] = False
    forms = draw_forms(classes, both, np.arange(350))
    assert (forms[~both] == "256").all()
    assert [(forms[classes == index] == "256").sum() for index in range(3)] == [40, 20, 80]


def test_copies_have_one_form() -> None:
    classes, both, groups = np.repeat([0, 1], 50), np.ones(100, bool), np.arange(100)
    both[:20] = False
    groups[[40, 70]] = 12  # one of three copies has the first form only
    groups[90:] = 89
    forms = draw_forms(classes, both, groups)
    assert set(forms[[12, 40, 70]]) == {"256"}
    assert len(set(forms[89:])) == 1


def test_copies_under_two_labels_move_no_other_image() -> None:
    classes, both, groups = np.repeat([0, 1], 50), np.ones(100, bool), np.arange(100)
    both[50:70] = False
    groups[70:90] = np.arange(20)  # of the second class, which has its fraction already
    forms = draw_forms(classes, both, groups)
    assert (forms[:50] == "256").sum() == 20
    assert (forms[90:] == "512").all()


def test_a_training_image_that_is_a_copy_of_a_validation_image_is_not_used(tmp_path: Path) -> None:
    write_source(tmp_path)
    pictures = tmp_path / "images_256"
    shutil.copy(pictures / "val" / "val00.jpg", pictures / "train" / "train12.jpg")
    forms = lay_out(tmp_path, tmp_path / "output")
    assert len(forms) == 29
    assert "train12" not in forms
    assert not list((tmp_path / "output").glob("*/train12.*"))
    assert "train12" not in (tmp_path / "output" / "train.csv").read_text()


def test_every_image_is_there_once_with_the_mask_of_its_form(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    write_source(source)
    forms = lay_out(source, output)
    assert len(forms) == 30
    assert (forms == "256").sum() == 12  # four of ten keratoses have no other form
    for name, form in forms.items():
        assert Image.open(output / "train" / f"{name}.jpg").width == int(form)
        assert (output / "masks" / f"{name}.png").read_text() == f"{form} {name}"
    kept = pd.read_csv(output / "forms.csv", dtype=str).set_index("image_id")["form"]
    assert kept.to_dict() == forms.to_dict()
    val, fine = (sorted(path.stem for path in (output / n).iterdir()) for n in ("val", "val-512"))
    assert (val, fine) == (["val00", "val01", "val02"], ["val00", "val01"])
    widths = [Image.open(output / n / "val00.jpg").width for n in ("val", "val-512")]
    assert widths == [256, 512]
    assert (output / "masks-512" / "val00.png").read_text() == "512 val00"
    assert len(pd.read_csv(output / "val.csv")) == 3


def test_labels_are_read_with_and_without_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    write_source(source)
    monkeypatch.setattr(sys, "argv", ["isic2017", "--source", f"{source}", "--output", f"{output}"])
    main()
    assert "melanoma" in capsys.readouterr().out
    assert len(read_labels(f"{output}/train.csv", "nevus").ids) == 30
    columns = LabelColumns(collection="collection")
    labels = read_labels(f"{output}/train-collections.csv", "nevus", columns=columns)
    assert labels.collections == ("to 999",) * 30  # train00 to train29


def test_collections_are_ranges_of_numbers() -> None:
    names = pd.Index([f"ISIC_{number:07d}" for number in (0, 999, 1000, 12_000, 13_499, 13_500)])
    assert collections_of(names).tolist() == [
        *("to 999", "to 999", "to 11999", "to 13499", "to 13499", "from 13500")
    ]
