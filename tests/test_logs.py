import json
import logging

import pytest

from lesioncam.cli import main
from lesioncam.logs import JsonLines

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
def test_jobs_log_json_and_errors_stay_one_plain_line(
    json_logs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FLAGS, verb="score", json_logs=json_logs) == 2
    logging.getLogger("lesioncam").info("scored", extra={"remaining": 3})
    error, line = capsys.readouterr().err.splitlines()
    assert error.startswith("lesioncam: --bundle")
    if json_logs:
        assert json.loads(line)["remaining"] == 3
    else:
        assert line[8:] == " scored"  # after the time
