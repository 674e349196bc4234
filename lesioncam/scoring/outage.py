"""Outage: whether the store is down, or only some images cannot be read.

A run that went on without its store would turn every image into a failed row.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from lesioncam.columns import TRANSIENT_KINDS, ErrorKind
from lesioncam.errors import RunFailedError
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import MAX_BYTES, read_uri

MAX_FAILURES = 256  # transient failures in a row before other images are tried
_SAMPLE = 16  # listed images, chosen at random, that are then tried

log = logging.getLogger("lesioncam")


class Outage:
    """Counts images in a row that could not be read for a transient reason.

    After `MAX_FAILURES` of them it tries images from all over the listing: if none can be read
    either, it is the store or the credentials, and the run stops. If one can, the run goes on, and
    the next check is after twice as many. Outcomes come part by part: a part with any other outcome
    resets the count. Archived images do not count, nor do they reset it: most were not requested.
    """

    def __init__(self, record: RunRecord):
        self._record = record
        self._failures, self._allowed = 0, MAX_FAILURES

    def check(self, part: Mapping[str, int]) -> None:
        """Count a part's images by their outcomes: `ok` or an error kind.

        Raises:
            RunFailedError: the store is out of reach.
        """
        asked = {kind: count for kind, count in part.items() if kind != ErrorKind.ARCHIVED}
        if not asked:
            return
        self._failures = (
            self._failures + sum(asked.values()) if asked.keys() <= TRANSIENT_KINDS else 0
        )
        if self._failures < self._allowed:
            return
        outcome = max(asked, key=lambda kind: asked[kind])
        with ThreadPoolExecutor(_SAMPLE) as threads:
            if not any(threads.map(_answers, self._record.sample(_SAMPLE))):
                raise RunFailedError(
                    f"the store is out of reach ({outcome}): {self._failures} images in a row "
                    f"could not be read, nor could {_SAMPLE} others; fix access to it and run "
                    f"the same command again"
                )
        log.warning(
            "%d images in a row could not be read (%s), but other images can be; continuing",
            self._failures,
            outcome,
        )
        self._failures, self._allowed = 0, 2 * self._allowed


def _answers(uri: str) -> bool:
    """Whether a listed image can be read, or only not because it is too large or archived.

    One that is not there may have gone with its disk.
    """
    try:
        read_uri(uri, MAX_BYTES)
    except StoreError as error:
        return error.kind in (ErrorKind.TOO_LARGE, ErrorKind.ARCHIVED)
    return True
