import json
from pathlib import Path

import pytest

from benchmarks.report import Rounds, markdown, steady_rate, write


def test_start_up_is_not_part_of_the_steady_rate() -> None:
    start, each = 12.0, 0.25
    assert steady_rate(16, start + 16 * each, 128, start + 128 * each) == pytest.approx(4)


def test_a_rate_needs_more_images_to_take_longer() -> None:
    with pytest.raises(ValueError, match="too few images"):
        steady_rate(16, 10.0, 32, 9.5)


def test_rounds_are_shown_by_their_median_and_range() -> None:
    assert str(Rounds((3.0, 1.0, 2.0))) == "2.00 (1.00 to 3.00)"
    assert str(Rounds((3.0,))) == "3.00"
    assert Rounds((3.0, 1.0, 2.0)).as_json() == {"median": 2.0, "values": [3.0, 1.0, 2.0]}


def test_a_report_is_a_table_and_json(tmp_path: Path) -> None:
    text = markdown(["program", "images/s"], [["one", Rounds((1.5,))], ["two", ""]])
    assert text == "| program | images/s |\n| --- | ---: |\n| one | 1.50 |\n| two |  |\n"
    write(tmp_path / "new", "speed", {"rounds": 3}, text)
    assert (tmp_path / "new" / "speed.md").read_text() == text
    assert json.loads((tmp_path / "new" / "speed.json").read_text()) == {"rounds": 3}
