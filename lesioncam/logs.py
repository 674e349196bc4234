"""Log lines on stderr: text for people, or JSON for a log store."""

import logging
from typing import Any

from pythonjsonlogger.json import JsonFormatter


class JsonLines(JsonFormatter):
    """One JSON object per line: `time`, `level`, `message`, and the record's `extra` fields."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "message"], timestamp="time", rename_fields={"levelname": "level"}
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Time first, level in lower case."""
        return {"time": log_data.pop("time"), **log_data, "level": log_data["level"].lower()}


def log_to_stderr(*, as_json: bool) -> None:
    """Set up the `lesioncam` logger, and no other."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if as_json else text)
    log = logging.getLogger("lesioncam")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
