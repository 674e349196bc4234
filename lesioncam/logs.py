"""Log lines on stderr, results on stdout: text for people, or JSON lines for a log store."""

import logging
import sys
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


log = logging.getLogger("lesioncam")


def log_to_stderr(*, as_json: bool) -> None:
    """Set up the `lesioncam` logger, and no other."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if as_json else text)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def print_result(text: str, **fields: Any) -> None:
    """Print a verb's result on stdout; where logs are JSON, log it with these fields."""
    if _logs_json():
        log.info(text, extra=fields)
    else:
        print(text)


def print_error(message: str) -> None:
    """Print the one line of an error on stderr; where logs are JSON, log it."""
    if _logs_json():
        log.error(message)
    else:
        print(f"lesioncam: {message}", file=sys.stderr)


def shows_bars() -> bool:
    """Whether progress bars can be drawn: stderr is a terminal, and logs are for people."""
    return sys.stderr.isatty() and not _logs_json()


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, JsonLines) for handler in log.handlers)
