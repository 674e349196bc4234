"""Our log lines: for people on a terminal, as JSON where a log store reads them."""

import json
import logging
from datetime import UTC, datetime

_LOGGINGS_OWN = frozenset(vars(logging.makeLogRecord({})))

PLAIN = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


class JsonLines(logging.Formatter):
    """A line is an object: `time`, `level`, `message`, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object in one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields = {
            name: value
            for name, value in vars(record).items()
            if name not in _LOGGINGS_OWN and not name.startswith("_")  # Ray adds one of its own
        }
        return json.dumps(line | fields)


def log_to_stderr(layout: logging.Formatter) -> None:
    """Our own lines, beside whatever a verb prints."""
    handler = logging.StreamHandler()
    handler.setFormatter(layout)
    log = logging.getLogger("lesioncam")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
