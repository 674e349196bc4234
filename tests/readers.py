"""Readers of Parquet, how each is called, and what comes of it.

The table in docs/reference/readers.md.

`python -m tests.readers` prints the table; tests/test_readers.py holds each of its cells.
"""

import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd

RIGHT = "right"
ERROR = "error"
FOLDER = "right, but `model` is the folder's"


@dataclass(frozen=True)
class Reader:
    """One way to read scores.

    Attributes:
        name: of the reader.
        package: that it is in.
        code: a Python expression of `path`.
        outcomes: for one output, a folder of outputs, and a tree of folders `model=...`.
        to_pandas: the method of what it returns that gives a DataFrame; empty if it is one.
        setup: statements before `code`.
    """

    name: str
    package: str
    code: str
    outcomes: tuple[str, str, str]
    to_pandas: str = "to_pandas"
    setup: str = ""

    def read(self, path: str) -> pd.DataFrame:
        """All rows."""
        names: dict[str, Any] = {"path": path}
        exec(self.setup, names)
        found = eval(self.code, names)
        frame: pd.DataFrame = getattr(found, self.to_pandas)() if self.to_pandas else found
        return frame


ALL_RIGHT = (RIGHT, RIGHT, RIGHT)
PANDAS, DATASET = "import pandas as pd", "import pyarrow.dataset as ds"
DUCKDB, POLARS, DASK = "import duckdb", "import polars as pl", "import dask.dataframe as dd"
DAFT, RAY, DATASETS = "import daft", "import ray", "from datasets import load_dataset"
SPARK = (
    "from pyspark.sql import SparkSession; "
    "spark = SparkSession.builder.master('local[1]').getOrCreate()"
)

READERS = [
    Reader("pandas", "pandas", "pd.read_parquet(path)", (RIGHT, RIGHT, ERROR), "", PANDAS),
    Reader("pandas", "pandas", "pd.read_parquet(path, partitioning=None)", ALL_RIGHT, "", PANDAS),
    Reader(
        "pandas with fastparquet",
        "fastparquet",
        'pd.read_parquet(path, engine="fastparquet")',
        (RIGHT, RIGHT, FOLDER),
        "",
        PANDAS,
    ),
    Reader("pyarrow", "pyarrow", "ds.dataset(path).to_table()", ALL_RIGHT, setup=DATASET),
    Reader(
        "Ray Data", "ray", "ray.data.read_parquet(path)", (RIGHT, RIGHT, FOLDER), setup=RAY
    ),
    Reader(
        "Ray Data", "ray", "ray.data.read_parquet(path, partitioning=None)", ALL_RIGHT, setup=RAY
    ),
    Reader(
        "DuckDB",
        "duckdb",
        "duckdb.sql(f\"FROM read_parquet('{path}/**/*.parquet')\")",
        (RIGHT, RIGHT, FOLDER),
        "df",
        DUCKDB,
    ),
    Reader(
        "DuckDB",
        "duckdb",
        "duckdb.sql(f\"FROM read_parquet('{path}/**/*.parquet', hive_partitioning=false)\")",
        ALL_RIGHT,
        "df",
        DUCKDB,
    ),
    Reader("polars", "polars", "pl.read_parquet(path)", (ERROR, ERROR, ERROR), setup=POLARS),
    Reader(
        "polars", "polars", 'pl.read_parquet(f"{path}/**/*.parquet")', ALL_RIGHT, setup=POLARS
    ),
    Reader("Dask", "dask", "dd.read_parquet(path)", ALL_RIGHT, "compute", DASK),
    Reader(
        "Dask", "dask", 'dd.read_parquet(f"{path}/**/*.parquet")', ALL_RIGHT, "compute", DASK
    ),
    Reader("Daft", "daft", "daft.read_parquet(path)", (RIGHT, ERROR, ERROR), setup=DAFT),
    Reader(
        "Daft", "daft", 'daft.read_parquet(f"{path}/**/*.parquet")', ALL_RIGHT, setup=DAFT
    ),
    Reader(
        "Hugging Face datasets",
        "datasets",
        'load_dataset("parquet", data_dir=path, split="train")',
        (ERROR, ERROR, ERROR),
        setup=DATASETS,
    ),
    Reader(
        "Hugging Face datasets",
        "datasets",
        'load_dataset("parquet", data_files=f"{path}/**/*.parquet", split="train")',
        ALL_RIGHT,
        setup=DATASETS,
    ),
    Reader(
        "Spark", "pyspark", "spark.read.parquet(path)", (RIGHT, ERROR, FOLDER), "toPandas", SPARK
    ),
    Reader(
        "Spark",
        "pyspark",
        'spark.read.option("recursiveFileLookup", True).parquet(path)',
        ALL_RIGHT,
        "toPandas",
        SPARK,
    ),
]  # fmt: skip


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| reader | call | one output | a folder of outputs | folders `model=...` |",
        "|---|---|---|---|---|",
    ]
    for reader in READERS:
        code = reader.code.replace("|", "\\|")
        lines.append(f"| {reader.name} | `{code}` | {' | '.join(reader.outcomes)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
