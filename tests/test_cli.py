import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lesioncam.cli import main
from tests.messy import lesion

LABELS = "image_id,melanoma\n0,1\n1,0\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a verb that must exit with 2 and one line on stderr; returns the line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "VERB"),
        (("scry",), "invalid choice: 'scry'"),
        (("score", "--images", "x"), "--bundle, --output"),
        (("train", "--workers", "0"), "--workers: expected a whole number of at least 1, got '0'"),
        (("train", "--epochs", "3,0"), "--epochs: expected a whole number of at least 1"),
        (("score", "--max-failed-fraction", "2"), "--max-failed-fraction: expected a number"),
        (("score", "--precision", "int8"), "--precision: invalid choice"),
    ],
)
def test_bad_flags_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


def test_a_missing_folder(here: Path, capsys: pytest.CaptureFixture[str], bundle_uri: str) -> None:
    line = refused(
        capsys, "score", "--images", "nowhere", "--bundle", bundle_uri, "--output", "out"
    )
    assert "--images: no such directory: nowhere" in line
    assert not list(here.iterdir())


def test_an_empty_folder(here: Path, capsys: pytest.CaptureFixture[str], bundle_uri: str) -> None:
    (here / "empty").mkdir()
    line = refused(capsys, "score", "--images", "empty", "--bundle", bundle_uri, "--output", "out")
    assert "--images: no images in empty;" in line
    assert not (here / "out").exists()


def test_a_changed_bundle(here: Path, capsys: pytest.CaptureFixture[str], bundle_uri: str) -> None:
    for source in Path(bundle_uri).iterdir():
        data = bytearray(source.read_bytes())
        if source.name == "stage2.safetensors":
            data[-1] ^= 1
        (here / source.name).write_bytes(data)
    (here / "images").mkdir()
    lesion(32, 32).save(here / "images" / "0.jpg")
    line = refused(capsys, "score", "--images", "images", "--bundle", here, "--output", "out")
    assert "stage2.safetensors is not the file that bundle.json was written for" in line
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("epoch = 3\n", "unknown key 'epoch'; known are backbone"),
        ("[crop]\nthresh = 0.2\n", "unknown key 'thresh'; known are map"),
        ("seed = 'one'\n", "seed: expected int, got 'one'"),
        ("val_fraction = 1.5\n", "val_fraction is 1.5; expected a number in (0, 1)"),
        ("seed = \n", "is not TOML"),
    ],
)
def test_a_bad_config(
    here: Path, capsys: pytest.CaptureFixture[str], config: str, message: str
) -> None:
    (here / "recipe.toml").write_text(config)
    flags = ("--images", "i", "--labels", "l.csv", "--bundle", "b", "--config", "recipe.toml")
    line = refused(capsys, "train", *flags)
    assert "--config: recipe.toml" in line
    assert message in line


def test_flags_win_over_the_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "recipe.toml").write_text("backbone = 'vgg16'\n")
    (here / "images").mkdir()
    for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg"):
        lesion(32, 32).save(here / "images" / name)
    (here / "l.csv").write_text("image_id,melanoma\n0,1\n1,0\n2,1\n3,0\n")
    flags = ("--images", "images", "--labels", "l.csv", "--bundle", "b")
    line = main(["train", *flags, "--config", "recipe.toml", "--backbone", "resnet"])
    assert line == 2
    assert "--backbone: 'resnet' is not one of vgg16" in capsys.readouterr().err


def test_help_is_quick_and_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from lesioncam.cli import _parser; _parser().format_help(); "
        "print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scoring_starts_without_torchvision() -> None:
    code = "import sys, lesioncam.scoring.pipeline; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lesioncam", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lesioncam 0.")


@pytest.mark.usefixtures("local_ray")
def test_exit_codes_of_scoring(
    here: Path, capsys: pytest.CaptureFixture[str], bundle_uri: str
) -> None:
    (here / "images").mkdir()
    lesion(32, 32).save(here / "images" / "good.jpg")
    (here / "images" / "bad.jpg").write_bytes(b"")
    (here / "images" / "photo.heic").write_bytes(b"1")
    flags = ["--images", "images", "--bundle", bundle_uri, "--output", "out"]
    assert main(["score", *flags]) == 0
    said = capsys.readouterr()
    assert "2 images listed: 1 ok, 1 failed (1 empty); 2 scored now" in said.out
    assert "skipped 1 file: 1 .heic" in said.out
    assert "good.jpg" not in said.out + said.err
    assert main(["score", *flags, "--max-failed-fraction", "0.2"]) == 3
    assert "--max-failed-fraction" in capsys.readouterr().err


def test_a_signal_to_stop_is_answered_in_one_line(here: Path, bundle_uri: str) -> None:
    (here / "images").mkdir()
    lesion(32, 32).save(here / "images" / "0.jpg")
    command = [sys.executable, "-m", "lesioncam", "score", "--images", "images"]
    command += ["--bundle", bundle_uri, "--output", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        lines = iter(run.stderr)
        assert any("1 images listed, 1 to score" in line for line in lines)
        run.send_signal(signal.SIGTERM)
        said = [line for line in lines if line.strip() and "images/s" not in line]
    assert said == ["lesioncam: interrupted; the same command goes on from here\n"]
    assert run.returncode == 1
    summary = next(Path("out/_lesioncam/runs").glob("*/summary.json"))
    assert json.loads(summary.read_text())["outcome"] == "failed"
