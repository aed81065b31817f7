"""Parquet through DuckDB, which is loaded when a Parquet file is asked for and not before.

Why DuckDB: pyarrow takes 170 MB on disk and pandas loads it into every process that has it (35 MB of memory in the
page's process, asked for or not); fastparquet is retired, and pandas warns against it. DuckDB takes 65 MB on disk,
nothing until it is used, and reads the file back just as well: `SELECT * FROM 'runs.parquet'`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage.database import StoreError

_TYPES = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
_BATCH = 2000


def write_parquet(records: Iterable[Mapping[str, Any]], columns: Mapping[str, type], path: Path) -> int:
    """Write records as one Parquet file; returns how many. `started_at` becomes a UTC timestamp.

    Raises StoreError when DuckDB is not installed or the file cannot be written.
    """
    try:
        import duckdb
    except ImportError as error:
        raise StoreError(
            "Parquet needs the package duckdb, which is not installed. Run “pip install duckdb”, "
            "or export as CSV or JSON Lines."
        ) from error
    types = {name: "TIMESTAMPTZ" if name == "started_at" else _TYPES[kind] for name, kind in columns.items()}
    # Nothing may be fetched: Parquet is built in.
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as db:
        db.execute(f"CREATE TABLE runs ({', '.join(f'{name} {kind}' for name, kind in types.items())})")
        lists = ", ".join(
            f"CAST(unnest(${at}::VARCHAR[]) AS {kind})" for at, kind in enumerate(types.values(), 1)
        )
        count = 0
        iterator = iter(records)
        while batch := list(itertools.islice(iterator, _BATCH)):
            count += len(batch)
            db.execute(
                f"INSERT INTO runs SELECT {lists}", [[_text(row[name]) for row in batch] for name in types]
            )
        try:
            # DuckDB takes no parameter for the name here.
            db.execute(
                f"COPY runs TO '{str(path).replace(chr(39), chr(39) * 2)}' (FORMAT parquet, COMPRESSION zstd)"
            )
        except duckdb.IOException as error:
            raise StoreError(f"{path} could not be written: {error}.") from error
    return count


def _text(value: Any) -> str | None:
    """Numbers as text that reads back to the same number: lists of one type are what DuckDB takes fastest."""
    return None if value is None else value if isinstance(value, str) else repr(value)
