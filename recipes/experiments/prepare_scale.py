"""Time and memory of preparing a data folder, by the number of interactions.

Each size is a log of 28-character user ids and 10-character item ids with a tenth as many users and a twelfth as many items, some
pairs of which are repeated; popularity is long-tailed. It is prepared in a process of its own, whose peak memory is the largest
resident set. The rows that are kept are compared with those of plain SQL, as far as they fit into memory.

    python recipes/experiments/prepare_scale.py --rows 1e6 1e7 5e7 --memory-limit 2GB --folder /tmp/scale
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PIECE = 1_000_000
SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.float64()), ("timestamp", pa.int64())])
SQL = """
create table kept as select user_id, item_id, timestamp from log
    qualify row_number() over (partition by user_id, item_id order by timestamp desc, row desc) = 1
"""
CORE = """
delete from kept where user_id in (select user_id from kept group by user_id having count(*) < {k})
    or item_id in (select item_id from kept group by item_id having count(*) < {k})
"""


def write_log(rows: int, file: Path) -> None:
    """Write the interactions of one size."""
    rng = np.random.default_rng(0)
    num_users, num_items = rows // 10, rows // 12
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            users = (num_users * rng.random(count) ** 2).astype(np.int64)
            items = (num_items * rng.random(count) ** 3).astype(np.int64)
            columns = {
                "user_id": [f"A{user * 2654435761 % 2**32:012X}{user:015d}" for user in users.tolist()],
                "item_id": [f"B{item:09d}" for item in items.tolist()],
                "rating": rng.integers(1, 6, count).astype(float),
                "timestamp": 1_300_000_000 + rng.integers(0, 100_000_000, count),
            }
            writer.write_table(pa.table(columns, SCHEMA))


def prepare_once(file: Path, output: Path, k_core: int, memory_limit: str) -> None:
    """Prepare a log in this process, and print seconds, CPU seconds, peak memory and the statistics as JSON."""
    from modeling_cllm4rec.corpora.preparation import prepare_folder

    started = time.perf_counter()
    log = pq.ParquetFile(file, pre_buffer=False)
    reader = pa.RecordBatchReader.from_batches(log.schema_arrow, log.iter_batches(PIECE // 10))
    info = prepare_folder(
        reader, None, None, output, split="leave-one-out", k_core=k_core, memory_limit=memory_limit, overwrite=True
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss / 1e6,
        "interactions": info["statistics"]["interactions"],
    }
    print(json.dumps(measured))


def kept_by_sql(file: Path, k_core: int, memory_limit: str, folder: Path) -> tuple[int, int]:
    """Return the number of rows that plain SQL keeps, and a checksum of them."""
    with duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": str(folder / "spill")}) as engine:
        engine.execute(f"create view log as select *, file_row_number as row from read_parquet('{file}', file_row_number=true)")
        engine.execute(SQL).fetchall()
        while k_core and engine.execute(CORE.format(k=k_core)).fetchall()[0][0]:
            pass
        return engine.execute("select count(*), sum(hash(user_id, item_id, timestamp)) from kept").fetchall()[0]


def kept_by_prepare(output: Path, memory_limit: str, folder: Path) -> tuple[int, int]:
    """Return the number of rows of a data folder, and a checksum of them."""
    with duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": str(folder / "spill")}) as engine:
        return engine.execute(
            f"""select count(*), sum(hash(user_id, item_id, timestamp))
            from read_parquet(['{output}/train.parquet', '{output}/validation.parquet', '{output}/test.parquet'])"""
        ).fetchall()[0]


def main() -> None:
    """Measure each size, and print one line of a table for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--folder", type=Path, required=True, help="for logs and data folders")
    parser.add_argument("--no-check", action="store_true", help="do not compare with plain SQL")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.once is not None:
        prepare_once(arguments.once, folder / "data", arguments.k_core, arguments.memory_limit)
        return
    folder.mkdir(parents=True, exist_ok=True)
    print("| interactions | seconds | CPU seconds | microseconds a row | peak memory, GB | kept | as plain SQL |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    for rows in map(int, arguments.rows):
        file = folder / f"log-{rows}.parquet"
        if not file.exists():
            write_log(rows, file)
        command = [sys.executable, __file__, "--once", str(file), "--folder", str(folder)]
        command += ["--k-core", str(arguments.k_core), "--memory-limit", arguments.memory_limit]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        same = "not compared"
        if not arguments.no_check:
            ours = kept_by_prepare(folder / "data", arguments.memory_limit, folder)
            same = "yes" if ours == kept_by_sql(file, arguments.k_core, arguments.memory_limit, folder) else "NO"
        print(
            f"| {rows:,} | {measured['seconds']:.0f} | {measured['cpu_seconds']:.0f} | {1e6 * measured['seconds'] / rows:.1f} "
            f"| {measured['peak_gb']:.2f} | {measured['interactions']:,} | {same} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
