import json
import logging
from datetime import UTC, datetime

import pytest

from lesioncam.cli import main
from lesioncam.logs import JsonLines


def test_a_line_is_an_object_with_the_fields_given_beside_it() -> None:
    record = logging.makeLogRecord(
        {"levelname": "WARNING", "msg": "%d left", "args": (7,), "created": 0.5}
    )
    vars(record).update(left=7, failed_by_kind={"empty": 1}, _ray_timestamp_ns=1)
    assert json.loads(JsonLines().format(record)) == {
        "time": datetime.fromtimestamp(0.5, UTC).isoformat(timespec="milliseconds"),
        "level": "warning",
        "message": "7 left",
        "left": 7,
        "failed_by_kind": {"empty": 1},
    }


@pytest.mark.parametrize("layout", [None, JsonLines()])
def test_jobs_choose_the_layout_and_errors_stay_one_plain_line(
    layout: logging.Formatter | None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", "--images", "/nowhere", "--bundle", "/nowhere", "--output", "/nowhere"]
    assert (main(arguments) if layout is None else main(arguments, layout)) == 2
    log = logging.getLogger("lesioncam")
    log.info("told", extra={"left": 3})
    error, line = capsys.readouterr().err.splitlines()
    assert error.startswith("lesioncam: --bundle")
    if layout is None:
        assert line[8:] == " told"  # after the time
    else:
        assert json.loads(line)["left"] == 3
