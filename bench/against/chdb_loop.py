"""The engine by itself: a loop that inserts ready blocks into the archive's own table, in chDB's process, without a server.

Each run is a process of its own (`python -m against.chdb_loop FOLDER`), which prints seconds and CPU seconds of the inserts.
The blocks, as Native, and the names of their columns are in FOLDER.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import chdb

from banksman import settings
from banksman.store.migrate import migrations

if TYPE_CHECKING:
    from archiver import Ready

BENCH = Path(__file__).parents[1]
SETTINGS = "async_insert = 0, min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0, optimize_on_insert = 0"
"""As `Store.insert` has them."""


def run(folder: Path, ready: Ready) -> tuple[float, float]:
    """-> (seconds, CPU seconds) of all blocks."""
    (folder / "columns.json").write_text(json.dumps(ready.names))
    for number, block in enumerate(ready.blocks):
        (folder / f"{number:04d}.native").write_bytes(block)
    command = [sys.executable, "-m", "against.chdb_loop", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=BENCH, timeout=600)
    if ran.returncode:
        raise RuntimeError(f"chDB: {ran.stderr[-2000:]}")
    rows, seconds, cpu = json.loads(ran.stdout.splitlines()[-1])
    assert rows == len(ready.blocks) * ready.rows, (rows, len(ready.blocks), ready.rows)
    return seconds, cpu


def main(folder: Path) -> None:
    where = settings.ClickHouse()
    connection = chdb.connect(str(folder / "chdb"))  # type: ignore[no-untyped-call]
    for migration in migrations(where):
        for statement in migration.statements:
            connection.query(statement)
    table = f"`{where.clickhouse_database}`.events"
    columns = ", ".join(f"`{name}`" for name in json.loads((folder / "columns.json").read_text()))
    began, cpu = time.perf_counter(), time.process_time()
    for block in sorted(folder.glob("*.native")):
        connection.query(f"INSERT INTO {table} ({columns}) FROM INFILE '{block}' SETTINGS {SETTINGS} FORMAT Native")
    took = time.perf_counter() - began, time.process_time() - cpu
    rows = connection.query(f"SELECT uniqExact(partition, offset) FROM {table}", "TabSeparated").bytes()
    print(json.dumps([int(rows), *took]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
