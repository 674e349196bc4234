"""Submission: final probabilities as a CSV file that the scorer of the ISIC challenges reads.

The rules are those of isic-challenge-scoring: a column `image`, one column for each class that the
ground truth has, and one row for each of its images. Values are from 0 to 1, and written with a
decimal point: the scorer refuses a column of whole numbers.
"""

import logging
import posixpath
from collections.abc import Sequence

import pandas as pd

from lesioncam.columns import probability_columns
from lesioncam.errors import InputError
from lesioncam.storage.local import local_path
from lesioncam.storage.uri_list import is_supported
from lesioncam.storage.uris import open_store

log = logging.getLogger("lesioncam")


def check_submission(uri: str) -> None:
    """Refuse what cannot be the name of a submission.

    Raises:
        InputError: it does not end in `.csv`, or is neither a path nor `s3://bucket/key`.
    """
    if not uri.endswith(".csv") or not is_supported(uri):
        raise InputError(f"--submission: {uri} should be a .csv file, as a path or s3://bucket/key")


def write_submission(uri: str, rows: pd.DataFrame, classes: Sequence[str], missing: int) -> None:
    """Write the file.

    Args:
        uri: of the file.
        rows: scored rows, with `image_id` and the final probabilities.
        classes: the classes that the ground truth has a column of, in its order.
        missing: of how many of its images there is no row; a warning says so.

    Raises:
        InputError: it cannot be written.
    """
    columns = dict(zip(probability_columns(classes), classes, strict=True))
    table = rows[["image_id", *columns]].rename(columns={"image_id": "image", **columns})
    path = uri if uri.startswith("s3://") else local_path(uri)
    store = open_store(posixpath.dirname(path) or ".")
    store.write(posixpath.basename(path), table.to_csv(index=False, lineterminator="\n").encode())
    if missing:
        log.warning(
            "--submission: %s of the %s labeled images failed or are not in the scores and have no "
            "row; the scorer refuses a file without them",
            f"{missing:,}",
            f"{missing + len(rows):,}",
        )
