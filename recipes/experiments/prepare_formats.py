"""Public data sets as they are downloaded: seconds, peak memory, and the rows that are kept against those of plain SQL.

Each folder is prepared in a process of its own, without a flag but its name. DuckDB reads the raw files again, in one query
for the format, keeps the last row of each (user, item) pair, and removes users and items below the k-core. The numbers of
rows and a checksum over the pairs of ids must be equal.

    python recipes/experiments/prepare_formats.py ml-latest-small ml-100k amazon-gift-cards --output FOLDER
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

TABS = "header = false, delim = '\t', quote = '', all_varchar = true"
QUERIES = {
    "ratings.csv*": "select userId u, movieId i, timestamp::bigint t from read_csv('{file}')",
    "ratings.dat": "select s[1] u, s[2] i, s[4]::bigint t from (select string_split(column0, '::') s from read_csv('{file}', "
    "header = false, delim = '\x01', quote = '', columns = {{'column0': 'varchar'}}))",
    "u.data": f"select column0 u, column1 i, column3::bigint t from read_csv('{{file}}', {TABS})",
    "*.inter": 'select "user_id:token" u, "item_id:token" i, "timestamp:float" t from read_csv(\'{file}\', '
    "delim = '\t', all_varchar = true)",
    "behaviors.tsv": "select column1 u, string_split(shown, '-')[1] i, strptime(column2, '%m/%d/%Y %I:%M:%S %p') t from "
    f"(select *, unnest(string_split(column4, ' ')) shown from read_csv('{{file}}', {TABS})) where shown like '%-1'",
    "yelp_academic_dataset_review.json*": "select user_id u, business_id i, date t from read_json('{file}')",
    "transactions_train.csv*": "select customer_id u, article_id i, t_dat t from read_csv('{file}', all_varchar = true)",
    "*.inter.json*": "select u, unnest(items) i from (select unnest(map_keys(m)) u, "
    "unnest(map_values(m)) items from (select json::map(varchar, varchar[]) m from read_json_objects('{file}', "
    "maximum_object_size = 1000000000)))",
    "*_5.json*": "select reviewerID u, asin i, unixReviewTime t from read_json('{file}')",
}
"""Name of the file of interactions -> query of its user ids, item ids and times."""
LAST = """create table kept as select u::varchar u, i::varchar i from
    (select *, row_number() over () as row from ({query}))
    qualify row_number() over (partition by u, i order by {order} row desc) = 1"""
CORE = """delete from kept where u in (select u from kept group by u having count(*) < {k})
    or i in (select i from kept group by i having count(*) < {k})"""
CHECKSUM = "select count(*), sum(hash(u::varchar, i::varchar)) from {table}"


def kept_by_sql(folder: Path, k_core: int) -> tuple[int, int, int]:
    """Return the number of raw rows, the number of rows that plain SQL keeps, and a checksum of them.

    Raises:
        FileNotFoundError: no file of the folder has a query.
    """
    found = [(path, query) for name, query in QUERIES.items() for path in sorted(folder.glob(name))]
    if not found:
        raise FileNotFoundError(f"{folder}: none of its files is {', '.join(QUERIES)}")
    file, query = found[0]
    query = query.format(file=file)
    with duckdb.connect() as engine:
        rows = engine.execute(f"select count(*) from ({query})").fetchall()[0][0]
        engine.execute(LAST.format(query=query, order="t desc," if " t " in f"{query} " else ""))
        while k_core and engine.execute(CORE.format(k=k_core)).fetchall()[0][0]:
            pass
        return (rows, *engine.execute(CHECKSUM.format(table="kept")).fetchall()[0])


def kept_by_prepare(output: Path) -> tuple[int, int]:
    """Return the number of rows of a data folder, and a checksum of them."""
    files = [str(output / f"{split}.parquet") for split in ("train", "validation", "test")]
    with duckdb.connect() as engine:
        table = f"(select user_id u, item_id i from read_parquet({files}))"
        return engine.execute(CHECKSUM.format(table=table)).fetchall()[0]


def prepare_once(folder: Path, output: Path, k_core: int) -> dict[str, float | str]:
    """Prepare a folder in this process, and return what it took."""
    from modeling_cllm4rec.corpora.formats import recognize_format
    from modeling_cllm4rec.corpora.raw_data import write_raw_data

    started, cpu = time.perf_counter(), time.process_time()
    # Public copies of large data sets are the first rows of each file, so their items are not those of the interactions.
    write_raw_data(output, folder, split="random", k_core=k_core, on_missing_item="keep", overwrite=True)
    return {
        "format": recognize_format(folder),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure each folder, and print one line of a table for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", required=True, type=Path, help="for the data folders")
    parser.add_argument("--k-core", type=int, default=0)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.once:
        print(json.dumps(prepare_once(arguments.folders[0], arguments.output, arguments.k_core)))
        return
    print("| folder | format | rows | seconds | CPU seconds | peak memory, GB | rows kept | as plain SQL |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for folder in arguments.folders:
        output = arguments.output / folder.name
        command = [sys.executable, __file__, str(folder), "--once", "--output", str(output), "--k-core", str(arguments.k_core)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows, *expected = kept_by_sql(folder, arguments.k_core)
        kept = kept_by_prepare(output)
        print(
            f"| {folder.name} | {found['format']} | {rows:,} | {found['seconds']:.1f} | {found['cpu_seconds']:.1f} | "
            f"{found['peak_gb']:.2f} | {kept[0]:,} | {'yes' if list(kept) == expected else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
