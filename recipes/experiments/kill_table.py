"""Kill the commands at random moments, run them again, and compare the results with those of uninterrupted runs.

    python recipes/experiments/kill_table.py --kills 12 --seed 0
    python recipes/experiments/kill_table.py --kills 4 --stages pretrain finetune --output runs/kills

An episode runs a command, ends it by a signal at a random moment of its work, runs it again (training stages with `--resume`) and
kills that again, until the kills of the episode are done. Then the command may end. Its result must equal that of the same
command without kills, file by file and to the bit. Cards and records (README.md, training.json, figures) hold times, so they are
left out, and reports of `evaluate` and `benchmark` are compared without their times and memory. What the command reads must not
have changed. A clean-up is a command that is refused or fails when it is run again.

The data and the language model are generated. Each command runs in a fork of this process, which has imported the libraries: no
kill is spent on imports. The folder keeps the results of uninterrupted runs, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NOT_COMPARED = ("README.md", "training.json", "run.json", "config_used.json")
"""Files that hold times, or the folder's own name."""
NOT_COMPARED_FOLDERS = ("checkpoints", "runs", "figures", "logs")
TIMES = (b'"seconds"', b'"command"')
"""Beginnings of the lines of a report of `evaluate` that differ: the time, and the folder that the command names."""
COSTS = ("seconds", "milliseconds_per_user", "peak_bytes", "peak_device_bytes")
"""Ends of the names of a benchmark's costs, in its JSON and in the columns of its Parquet file."""
COST_COLUMNS = ("training", "memory of training", "scoring, per user", "process of the row", "memory of that process")
"""The same in its report."""
WORLD = {"num_users": 80, "num_items": 50, "interactions_per_user": 8}


@dataclass(frozen=True)
class Stage:
    """A command to be killed.

    Attributes:
        words: of the command line; `{W}` is the folder of the world and `{O}` that of the result.
        needs: stages whose uninterrupted results it reads.
        resumed: words that are added when it runs again.
    """

    words: str
    needs: tuple[str, ...] = ()
    resumed: str = ""


TRAINING = "--per-device-train-batch-size 16 --max-text-tokens 12 --learning-rate 0.01 --save-steps 3"
STAGES = {
    "prepare": Stage(
        "prepare --interactions {W}/interactions.parquet --items {W}/items.parquet --users {W}/users.parquet "
        "--split random --output {O}"
    ),
    "pretrain": Stage(
        f"pretrain --data {{W}}/data --backbone {{W}}/backbone --num-train-epochs 1 --content-share 0.5 {TRAINING} "
        "--output {O}",
        (),
        "--resume",
    ),
    "finetune": Stage(
        f"finetune --data {{W}}/data --start {{W}}/pretrain/pretrained --num-train-epochs 3 {TRAINING} --output {{O}}",
        ("pretrain",),
        "--resume",
    ),
    "update": Stage(
        f"update --start {{W}}/finetune --data {{W}}/data --num-train-epochs 2 {TRAINING} --output {{O}}",
        ("finetune",),
        "--resume",
    ),
    "index-items": Stage(
        "index-items --data {W}/data --encoder {W}/backbone --num-levels 2 --codebook-size 16 --latent-dim 8 "
        "--hidden-dims 32 --num-train-epochs 200 --output {O}",
        (),
        "--resume",
    ),
    "align": Stage(
        f"align --data {{W}}/data --backbone {{W}}/backbone --index {{W}}/index-items --tasks seqrec item2index "
        f"--num-train-epochs 2 {TRAINING} --output {{O}}",
        ("index-items",),
        "--resume",
    ),
    "add-items (CLLM4Rec)": Stage("add-items --model {W}/finetune --items {W}/new.parquet --output {O}", ("finetune",)),
    "add-items (LC-Rec)": Stage(
        "add-items --model {W}/align --items {W}/new.parquet --encoder {W}/backbone --output {O}", ("align",)
    ),
    "recommend (file)": Stage("recommend --model {W}/align --k 5 --batch-size 4 --output {O}.parquet", ("align",)),
    "recommend (parts)": Stage("recommend --model {W}/align --k 5 --batch-size 4 --part-size 10 --output {O}", ("align",)),
    "evaluate": Stage("evaluate --model {W}/align --data {W}/data --batch-size 8 --output {O}", ("align",)),
    "benchmark": Stage(
        "benchmark quality --models popularity,itemknn,ease --data {W}/data --metrics recall@5 ndcg@10 --no-plots --seeds 1 "
        "--resamples 200 --output {O}"
    ),
}
"""Name -> command. One that others need comes before them."""


@dataclass
class Row:
    """What happened to one stage under one signal."""

    kills: int = 0
    episodes: int = 0
    equal: int = 0
    clean_ups: int = 0
    left_over: int = 0
    notes: list[str] = field(default_factory=list)


def start(words: Sequence[str], log: Path) -> int:
    """Run a command of `cllm4rec` in a fork of this process, in a process group of its own; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its jobs in the background ignore it
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        print("\n$ cllm4rec", *words, flush=True)
        from modeling_cllm4rec.commands.main import main as command

        code = command(list(words)) or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float | None = None) -> int | None:
    """Wait for a process; return its exit code (negative for a signal), or None if it still runs after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def finish(words: Sequence[str], log: Path) -> int:
    """Run a command to its end, and return its exit code."""
    code = wait(start(words, log))
    assert code is not None
    return code


def make_world(folder: Path, seed: int) -> None:
    """Write tables, a data folder, a small language model and new items, in a fork, since later forks would lose its threads."""
    if (folder / "new.parquet").exists():
        return
    child = os.fork()
    if not child:
        code = 1
        try:
            _write_world(folder, seed)
            code = 0
        finally:
            os._exit(code)
    if wait(child):
        raise SystemExit(f"kill_table.py: error: no world in {folder}; see the traceback above")


def _write_world(folder: Path, seed: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from modeling_cllm4rec.corpora.preparation import prepare_tables
    from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
    from modeling_cllm4rec.training.backbones import train_backbone

    folder.mkdir(parents=True, exist_ok=True)
    dataset = make_synthetic_dataset(seed=seed, **WORLD)
    for name in ("interactions", "items", "users"):
        pq.write_table(getattr(dataset, name), folder / f"{name}.parquet")
    data = prepare_tables(dataset.interactions, dataset.items, dataset.users, folder / "data", split="random", seed=seed)
    train_backbone(data, folder / "backbone", vocab_size=400, hidden_size=32, layers=2, heads=2, context_length=128, seed=seed)
    new = dataset.items.slice(0, 5)
    ids = pa.array([f"new-{number}" for number in range(5)])
    pq.write_table(new.set_column(new.column_names.index("item_id"), "item_id", ids), folder / "new.parquet")


def words_of(stage: Stage, world: Path, output: Path, again: bool = False) -> list[str]:
    """Return the words of a command."""
    line = stage.words + (" " + stage.resumed if again else "")
    return [word.replace("{W}", str(world)).replace("{O}", str(output)) for word in line.split()]


def hashes(folder: Path, everything: bool = False) -> dict[str, str]:
    """Return relative path -> SHA-256 of what a command wrote: of a folder, or of the file of its name.

    Args:
        folder: of the result.
        everything: also records, cards and checkpoints.
    """
    files = [folder.with_name(folder.name + ".parquet")] if not folder.exists() else sorted(folder.rglob("*"))
    found = {}
    for file in files:
        path = file.relative_to(folder) if folder.exists() else Path(file.name)
        skipped = file.name in NOT_COMPARED or set(path.parts[:-1]) & set(NOT_COMPARED_FOLDERS) or file.suffix in (".png", ".svg")
        if file.is_file() and (everything or not skipped):
            name = "file" if not folder.exists() else str(path)
            found[name] = hashlib.sha256(without_costs(file)).hexdigest()
    return found


def without_costs(file: Path) -> bytes:
    """Return the bytes of a file; of a report, only what does not depend on time and memory."""
    if file.name.startswith("evaluation-"):
        return b"\n".join(line for line in file.read_bytes().splitlines() if not any(word in line for word in TIMES))
    if file.parent.name in ("jobs", "tuning"):
        return json.dumps(_kept(json.loads(file.read_bytes())), sort_keys=True).encode()
    if file.name == "results.parquet":
        import pyarrow.parquet as pq  # not before the forks have imported torch

        table = pq.read_table(file)
        return repr(table.drop_columns([name for name in table.column_names if name.endswith(COSTS)]).to_pylist()).encode()
    if file.name == "report.md":
        return "\n".join(_without_cost_columns(file.read_text(encoding="utf-8").splitlines())).encode()
    return file.read_bytes()


def _kept(value: Any) -> Any:
    """Return a value of JSON without costs, at any depth."""
    if isinstance(value, list):
        return [_kept(one) for one in value]
    if isinstance(value, dict):
        return {name: _kept(one) for name, one in value.items() if not name.endswith(COSTS)}
    return value


def _without_cost_columns(lines: Sequence[str]) -> list[str]:
    """Return the lines of a report; rows of a table that has costs lack the cells of COST_COLUMNS."""
    kept, costs = [], set[int]()
    for line in lines:
        cells = line.split(" | ")
        if not line.startswith("|"):
            costs = set()
        elif set(COST_COLUMNS) <= set(cells):
            costs = {cells.index(name) for name in COST_COLUMNS}
        kept.append(" | ".join(cell for place, cell in enumerate(cells) if place not in costs))
    return kept


def left_overs(folder: Path) -> list[str]:
    """Return the temporary files and folders in and next to a result."""
    found = [one for one in folder.parent.iterdir() if one.name.startswith(".") and one.name.lstrip(".").startswith(folder.name)]
    inside = folder.rglob("*") if folder.exists() else ()
    return [str(one) for one in (*found, *inside) if one.name.startswith((".", "tmp")) and one.name != ".arrow"]


class Killer:
    """Kill stages of one world, and count.

    Args:
        folder: of worlds, results and logs.
        seed: of the world and of the moments.
        again: kills of one episode before its command may end.
    """

    def __init__(self, folder: Path, seed: int, again: int = 3) -> None:
        self.world, self.folder, self.seed, self.again = folder / "world", folder, seed, again
        self.seconds: dict[str, float] = {}
        make_world(self.world, seed)

    def reference(self, name: str) -> Path:
        """Return the result of a stage without kills."""
        for needed in STAGES[name].needs:
            self.reference(needed)
        output = self.world / name
        if not hashes_there(output):
            self._uninterrupted(name, output)
        return output

    def seconds_of(self, name: str) -> float:
        """Return the seconds of a stage without kills, whose result must be that of the run before."""
        if name not in self.seconds:
            reference, again = self.reference(name), self.folder / "timing" / name
            shutil.rmtree(again.parent, ignore_errors=True)
            again.parent.mkdir(parents=True)
            begun = time.monotonic()
            self._uninterrupted(name, again)
            self.seconds[name] = time.monotonic() - begun
            if different := sorted(set(hashes(again).items()) ^ set(hashes(reference).items())):
                raise SystemExit(f"kill_table.py: error: two runs of {name} without kills differ: {different}")
        return self.seconds[name]

    def _uninterrupted(self, name: str, output: Path) -> None:
        log = self.folder / "reference.log"
        if code := finish(words_of(STAGES[name], self.world, output), log):
            shutil.rmtree(output, ignore_errors=True)
            raise SystemExit(f"kill_table.py: error: {name} ends with {code} without a kill; see {log}")

    def episode(self, name: str, number: signal.Signals, kills: int, row: Row) -> int:
        """Kill one stage up to `again` times, let it end, compare; return the kills."""
        stage, reference, seconds = STAGES[name], self.reference(name), self.seconds_of(name)
        draws = random.Random(f"{self.seed} {name} {number.name} {row.episodes}")
        output = self.folder / "killed" / f"{name}-{number.name}-{row.episodes}" / name
        log = output.parent / "log"
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir(parents=True)
        before = {one: hashes(self.world / one, everything=True) for one in ("data", "backbone", *stage.needs)}
        row.episodes, done, tries = row.episodes + 1, 0, 0
        while done < min(self.again, kills):
            child = start(words_of(stage, self.world, output, again=tries > 0), log)
            tries += 1
            code = wait(child, draws.uniform(0, seconds))
            if killed := code is None:
                os.kill(child, number)
                code = wait(child)
                done += code != 0
            same = hashes_there(output) and hashes(output) == hashes(reference)
            if code == 0 or same:  # it had written its result before the kill, and may say so when it is run again
                break
            if not killed:
                self._clean_up(row, output, log, f"{name} after {number.name} ends with {code}")
            elif code not in (-number, 128 + number):
                self._note(row, f"{name} ends with {code} when it gets {number.name}, see {log}")
        if not (hashes_there(output) and hashes(output) == hashes(reference)) and finish(
            words_of(stage, self.world, output, again=tries > 0), log
        ):
            self._clean_up(row, output, log, f"{name} after {number.name} does not go on")
            finish(words_of(stage, self.world, output), log)
        equal = hashes(output) == hashes(reference)
        intact = before == {one: hashes(self.world / one, everything=True) for one in before}
        row.kills, row.equal = row.kills + done, row.equal + (equal and intact)
        if not equal or not intact:
            self._note(row, f"{name} after {number.name}: {'other bits' if intact else 'its inputs were changed'}, see {log}")
        left = left_overs(output)
        row.left_over += len(left)
        for one in left:
            self._note(row, f"{name} after {number.name} leaves {one}")
        return done

    def _clean_up(self, row: Row, output: Path, log: Path, note: str) -> None:
        row.clean_ups += 1
        self._note(row, f"{note}, see {log}: {log.read_text(errors='replace').strip().splitlines()[-1][:300]}")
        shutil.rmtree(output, ignore_errors=True)

    def _note(self, row: Row, note: str) -> None:
        row.notes.append(note)
        print(note, file=sys.stderr, flush=True)

    def stage(self, name: str, kills: int) -> dict[str, Row]:
        """Return one row a signal, of about `kills` kills in all."""
        rows = {number.name: Row() for number in SIGNALS}
        for number in SIGNALS:
            wanted, row = -(-kills // len(SIGNALS)), rows[number.name]
            while row.kills < wanted and row.episodes < wanted + 3:
                self.episode(name, number, wanted - row.kills, row)
        return rows


def hashes_there(output: Path) -> bool:
    """Return whether a command has written a result: a folder with files, or the file of its name."""
    return output.with_name(output.name + ".parquet").exists() or (output.exists() and any(output.iterdir()))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="commands to kill")
    flags.add_argument("--kills", type=int, default=8, help="kills of a stage, shared by four signals")
    flags.add_argument("--seed", type=int, default=0, help="seed of the data and of the moments")
    flags.add_argument("--output", default="runs/kill-table", help="folder of results and logs")
    arguments = flags.parse_args(argv)
    import_libraries()
    killer = Killer(Path(arguments.output), arguments.seed)
    print("| stage | signal | kills | episodes | equal | clean-ups | left over |\n|---|---|---|---|---|---|---|")
    bad = []
    for name in arguments.stages:
        for number, row in killer.stage(name, arguments.kills).items():
            cells = (name, number, row.kills, row.episodes, row.equal, row.clean_ups, row.left_over)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            bad += row.notes
    return int(bool(bad))


def import_libraries() -> None:
    """Import what the commands need, once for all forks, without starting threads that a fork would lose."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import modeling_cllm4rec.cllm4rec.finetuning
    import modeling_cllm4rec.cllm4rec.update
    import modeling_cllm4rec.commands.evaluation_run
    import modeling_cllm4rec.commands.main
    import modeling_cllm4rec.corpora.preparation
    import modeling_cllm4rec.lcrec.alignment
    import modeling_cllm4rec.lcrec.indexing  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
