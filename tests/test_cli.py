import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lesioncam import __version__, api
from lesioncam.cli import main, parse
from lesioncam.evaluation.evaluate import EvaluateRequest
from lesioncam.evaluation.report import ReportRequest
from lesioncam.flags import Parser
from lesioncam.scoring.pipeline import SMALL, ScoreRequest
from lesioncam.training.job import TrainRequest
from lesioncam.verbs import VERBS
from tests.messy import lesion, write_lesions

TRAIN_FLAGS = ("--images", "i", "--labels", "l.csv", "--bundle", "b")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a verb that must exit with 2 and one line of an error on stderr; returns the line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines: list[str] = err.splitlines(keepends=True)
    started, error = lines[:-1], lines[-1]
    assert all(line[8:] == f" lesioncam {__version__}: {arguments[0]}\n" for line in started)
    return error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict",), "unknown verb predict; see lesioncam --help"),
        (("scroe",), "unknown verb scroe; did you mean score?"),
        (("-x",), "unknown flag -x; see lesioncam --help"),
        (("--verson",), "unknown flag --verson; did you mean --version?"),
        (("score", "--images", "x"), "--bundle, --output; see lesioncam score --help"),
        (("score", "--outptu", "x"), "unknown flag --outptu; did you mean --output?"),
        (("score", "--out=x"), "unknown flag --out; did you mean --output?"),
        (("score", "-x"), "unknown flag -x; see lesioncam score --help"),
        (("score", "-images", "x"), "unknown flag -images; did you mean --images?"),
        (("score", "--images"), "--images: expected a value; see lesioncam score --help"),
        (("score", "--limit", "-1"), "--limit: expected a whole number of at least 1, got '-1'"),
        (("demo", "extra"), "unexpected argument 'extra'; flags begin with --"),
        (("train", "--storage", "x"), "unknown flag --storage; see lesioncam train --help"),
        (("train", "--workers", "0"), "--workers: expected a whole number of at least 1, got '0'"),
        (("train", "--epochs", "3,0"), "--epochs: expected a whole number of at least 1"),
        (("train", "--backbone", "resnet"), "--backbone: invalid choice: 'resnet' (choose from"),
        (("train", "--val-fraction", "1"), "--val-fraction: expected a number above 0 and below 1"),
        (("score", "--max-failed-fraction", "2"), "--max-failed-fraction: expected a number"),
        (("score", "--precision", "int4"), "--precision: invalid choice"),
        (("calibrate", "--sensitivity", "0.9"), "expected CLASS=F[,CLASS=F], each class once"),
        (("calibrate", "--specificity", "a=.9,a=.8"), "expected CLASS=F[,CLASS=F], each class"),
        (("calibrate", "--sensitivity", "a=1"), "expected a number above 0 and below 1, got '1'"),
        (("download",), "DATASET, DIR; see lesioncam download --help"),
        (("download", "sample"), "required: DIR; see lesioncam download --help"),
        (("download", "isic2018", "d"), "DATASET: invalid choice: 'isic2018' (choose from"),
        (("download", "sample", "d", "e"), "unexpected argument 'e'; flags begin with --"),
        (("download", "sample", ""), "directory: the value is empty; give one"),
        (("download", "sample", "d", "--dir"), "unknown flag --dir; see lesioncam download --help"),
    ],
)
def test_bad_flags_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    line = refused(capsys, *arguments)
    assert line.startswith("lesioncam: ")
    assert message in line


def test_without_a_verb_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: lesioncam VERB [flags]")


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_value_of_any_flag_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], verb: str, value: str
) -> None:
    """As an unset shell variable gives it; an empty path would be the working directory."""
    parser = Parser(prog="p")
    VERBS[verb].add_flags(parser)
    actions = [one for one in parser._actions if one.nargs != 0]
    flags = [one.option_strings[0] for one in actions if one.option_strings]
    for flag in flags:
        for given in ([flag, value], [f"{flag}={value}"]):
            expected = f"lesioncam: {flag}: the value is empty; give one, or leave it out"
            assert refused(capsys, verb, *given).startswith(expected)
    assert not list(here.iterdir())


@pytest.mark.parametrize("value", ["-", "-3", "-a b"])
def test_values_that_are_no_flags(value: str) -> None:
    flags = parse(["--images", value, "--bundle", "b", "--output", "o"], verb="score", prog="p")
    assert flags.images == value


def test_names_are_separated_by_commas() -> None:
    required = ["score", "--images", "list.csv", "--bundle", "model", "--output", "scores"]
    assert parse([*required, "--keep-columns", "patient, site"]).keep_columns == ["patient", "site"]


def test_a_program_with_one_verb_reports_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "x"], verb="score", prog="python jobs/score.py") == 2
    assert "see python jobs/score.py --help" in capsys.readouterr().err
    flags = parse(["--images", "i", "--bundle", "b", "--output", "o"], verb="score", prog="p")
    assert vars(flags) == {"verb": "score", "images": "i", "bundle": "b", "output": "o"}


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
    assert "stage2.safetensors does not have the digest in bundle.json" in line
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("epoch = 3\n", "unknown key 'epoch'"),
        ("[crop]\nthresh = 0.2\n", "unknown key 'crop.thresh', did you mean 'crop.threshold'?"),
        ("seed = 'one'\n", "seed is 'one'"),
        ("val_fraction = 1.5\n", "val_fraction is 1.5"),
        ("backbone = 'resnet'\n", "backbone is 'resnet'; it should be one of vgg16"),
        ("seed = \n", "is not TOML"),
    ],
)
def test_a_bad_config(
    here: Path, capsys: pytest.CaptureFixture[str], config: str, message: str
) -> None:
    (here / "recipe.toml").write_text(config)
    line = refused(capsys, "train", *TRAIN_FLAGS, "--config", "recipe.toml")
    assert "--config: recipe.toml" in line
    assert message in line


def test_flags_override_the_config(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "recipe.toml").write_text("backbone = 'vgg16'\nstage1_epochs = 9\nseed = 5\n")
    calls: list[dict[str, Any]] = []

    def train(**flags: Any) -> dict[str, Any]:
        calls.append(flags)
        return {"bundle": "b", "model": "0" * 64, "metrics": {}, "operating_points": []}

    monkeypatch.setattr(api, "train", train)
    given = ("--config", "recipe.toml", "--backbone", "tiny", "--epochs", "3,2", "--no-gpu")
    assert main(["train", *TRAIN_FLAGS, *given]) == 0
    (flags,) = calls
    settings = flags.pop("settings")
    assert (settings.backbone, settings.seed) == ("tiny", 5)
    assert (settings.stage1_epochs, settings.stage2_epochs) == (3, 2)
    assert flags == {"images": "i", "labels": "l.csv", "bundle": "b", "gpu": False}


def test_weights_of_another_network_are_refused_before_images_are_listed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", *TRAIN_FLAGS, "--weights", "ResNet50_Weights.DEFAULT")
    assert "--weights: ResNet50_Weights.DEFAULT is for another network" in line


@pytest.mark.parametrize(
    ("verb", "request_class"),
    [
        ("train", TrainRequest),
        ("score", ScoreRequest),
        ("evaluate", EvaluateRequest),
        ("report", ReportRequest),
    ],
)
def test_flags_functions_and_requests_have_the_same_names_and_defaults(
    verb: str, request_class: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = inspect.signature(getattr(api, verb)).parameters
    request = {field.name: field.default for field in fields(request_class)}
    assert parameters.keys() == request.keys()
    for name, parameter in parameters.items():
        optional = parameter.default is not inspect.Parameter.empty
        if optional and name not in ("settings", "output", "rest_class"):
            assert parameter.default == request[name]
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    help_text = capsys.readouterr().out
    for name in parameters.keys() - {"settings"}:
        assert f"--{name.replace('_', '-')}" in help_text
    assert f"lesioncam {verb} --" in help_text.partition("example:")[2]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


HEAVY = "{'torch', 'ray', 'pandas', 'numpy', 'pyarrow', 'pydantic', 'shtab'}"


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys, contextlib, io; from lesioncam.cli import main\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({arguments})\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_the_first_line_comes_before_anything_heavy_is_loaded() -> None:
    code = (
        f"import logging, sys; from lesioncam.cli import main\n"
        f"class Stop(Exception): pass\n"
        f"def first(record): raise Stop(sorted({HEAVY} & set(sys.modules)), record.getMessage())\n"
        f"logging.getLogger('lesioncam').addFilter(first)\n"
        f"try: main(['score', '--images', 'i', '--bundle', 'b', '--output', 'o'])\n"
        f"except Stop as stop: print(*stop.args)"
    )
    assert run_python(code) == f"[] lesioncam {__version__}: score"


def test_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lesioncam", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lesioncam 0.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"evaluate"}),
        (["score", "--max"], {"--max-failed-fraction"}),
        (["score", "--precision", "b"], {"bfloat16"}),
        (["train", "--config", "rec"], {"recipe.toml"}),
        (["download", "sa"], {"sample"}),
        (["download", "sample", "rec"], {"recipe.toml"}),
    ],
)
def test_bash_completes_verbs_flags_values_and_paths(
    here: Path, words: list[str], expected: set[str]
) -> None:
    (here / "recipe.toml").touch()
    script = subprocess.run(
        [sys.executable, "-m", "lesioncam", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    quoted = " ".join(words)
    script += (
        f"\nCOMP_WORDS=(lesioncam {quoted})\nCOMP_CWORD={len(words)}\n"
        "compopt() { :; }\n_shtab_lesioncam\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completion_of_other_shells(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    assert "max-failed-fraction" in script


@pytest.mark.usefixtures("in_process")
def test_exit_codes_of_scoring(
    here: Path, capsys: pytest.CaptureFixture[str], bundle_uri: str
) -> None:
    (here / "images").mkdir()
    lesion(32, 32).save(here / "images" / "good.jpg")
    (here / "images" / "bad.jpg").write_bytes(b"")
    (here / "images" / "photo.psd").write_bytes(b"1")
    flags = ["--images", "images", "--bundle", bundle_uri, "--output", "out"]
    assert main(["score", *flags]) == 0
    printed = capsys.readouterr()
    assert "2 images listed: 1 ok, 1 failed (1 empty); 2 scored now" in printed.out
    assert "skipped 1 file: 1 .psd" in printed.out
    assert "good.jpg" not in printed.out + printed.err
    assert main(["score", *flags, "--max-failed-fraction", "0.2"]) == 3
    assert "--max-failed-fraction" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_and_three_interrupts_end_a_run_in_one_line(here: Path, bundle_uri: str) -> None:
    write_lesions(here / "images", SMALL + 1)  # so many that Ray starts
    command = [sys.executable, "-m", "lesioncam", "score", "--images", "images"]
    command += ["--bundle", bundle_uri, "--output", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        lines = iter(run.stderr)
        assert any(f"{SMALL + 1} to score" in line for line in lines)
        run.send_signal(signal.SIGTERM)
        for _ in range(3):
            run.send_signal(signal.SIGINT)
        rest = [line for line in lines if line.strip() and "images/s" not in line]
    assert [line for line in rest if "interrupted: stopping" not in line] == [
        "lesioncam: interrupted; run the same command again to continue\n"
    ]
    assert run.returncode == 1
    summary = next(Path("out/_lesioncam/runs").glob("*/summary.json"))
    assert json.loads(summary.read_text())["outcome"] == "failed"
