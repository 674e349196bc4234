import json
import logging

import pytest

from lesioncam import __version__
from lesioncam.cli import main
from lesioncam.logs import JsonLines, print_result

FLAGS = ("--images", "/nowhere", "--bundle", "/nowhere", "--output", "/nowhere")


def test_a_json_line_has_time_level_message_and_the_extra_fields() -> None:
    record = logging.makeLogRecord(
        {"levelname": "WARNING", "msg": "%d remaining", "args": (7,), "created": 0.5}
    )
    vars(record).update(remaining=7, failed_by_kind={"empty": 1}, _ray_timestamp_ns=1)
    line = JsonLines().format(record)
    assert list(json.loads(line).items()) == [
        ("time", "1970-01-01T00:00:00.500000+00:00"),
        ("level", "warning"),
        ("message", "7 remaining"),
        ("remaining", 7),
        ("failed_by_kind", {"empty": 1}),
    ]
    assert "\n" not in line


@pytest.mark.parametrize("json_logs", [False, True])
def test_jobs_print_json_only_and_verbs_text(
    json_logs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FLAGS, verb="score", json_logs=json_logs) == 2
    logging.getLogger("lesioncam").info("scored", extra={"remaining": 3})
    print_result("2 listed", listed=2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    if json_logs:
        first, error, line, result = map(json.loads, lines)
        assert (first["level"], first["message"]) == ("info", f"lesioncam {__version__}: score")
        assert error["level"] == "error"
        assert error["message"].startswith("--bundle: /nowhere/bundle.json")
        assert line["remaining"] == 3
        assert (out, result["message"], result["listed"]) == ("", "2 listed", 2)
    else:
        first, error, line = lines
        assert first[8:] == f" lesioncam {__version__}: score"  # after the time
        assert error.startswith("lesioncam: --bundle: /nowhere/bundle.json")
        assert (line[8:], out) == (" scored", "2 listed\n")


def test_bad_flags_of_a_job_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--outptu", "o"], verb="score", prog="p", json_logs=True) == 2
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "unknown flag --outptu; did you mean --output?"
