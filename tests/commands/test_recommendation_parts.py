"""`recommend --output FOLDER`: parts that processes and shards share out, and that a stopped run does not write again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pages import blocks

from modeling_cllm4rec.commands import recommendation_parts
from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.commands.recommendation_parts import QUESTION_FILE
from modeling_cllm4rec.commands.recommendation_tables import HistoriesFile
from modeling_cllm4rec.commands.shares import share_of
from modeling_cllm4rec.core import top_items
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.hub.loading import load_recommender

Ask = Callable[..., int]


@pytest.fixture
def ask(model: Path) -> Ask:
    """Call the command with batches of 4 and parts of 7 users."""

    def call(output: Path, *flags: str, k: int = 5) -> int:
        sizes = ["--batch-size", "4", "--part-size", "7", "--k", str(k), "--device", "cpu"]
        return main(["recommend", "--model", str(model), "--output", str(output), *sizes, *flags])

    return call


def test_one_process_writes_the_rows_of_a_single_file(ask: Ask, model: Path, tmp_path: Path) -> None:
    assert ask(tmp_path / "parts") == 0
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == [QUESTION_FILE, *(f"part-{number:05d}.parquet" for number in range(9))]
    flags = ["--k", "5", "--batch-size", "7", "--device", "cpu", "--output", str(tmp_path / "one.parquet")]
    assert main(["recommend", "--model", str(model), *flags]) == 0
    together, whole = pq.read_table(tmp_path / "parts"), pq.read_table(tmp_path / "one.parquet")
    assert together.num_rows == 60 * 5 and together.drop(["score"]).equals(whole.drop(["score"]))
    np.testing.assert_allclose(together["score"], whole["score"], atol=1e-5)  # other batches have another padding


def test_processes_and_shards_write_the_same_files(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(tmp_path / "one") == 0
    for shard, processes in (("1/2", 1), ("2/2", 3)):  # machines may have different numbers of processes
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        for process in range(processes):
            monkeypatch.setenv("RANK", str(process))
            assert ask(tmp_path / "many", "--shard", shard) == 0
    files = sorted((tmp_path / "one").glob("*.parquet"))
    assert len(files) == 9 == len(list((tmp_path / "many").glob("*.parquet")))
    for file in files:
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "many" / file.name))


def test_a_killed_run_goes_on_with_the_parts_that_are_missing(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = recommendation_parts._write, []

    def killed(tables: Any, file: Path) -> None:
        written.append(file.name)
        if len(written) == 4:
            next(tables)
            file.with_name(f".{file.name}.0123.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        write(tables, file)

    monkeypatch.setattr(recommendation_parts, "_write", killed)
    assert ask(tmp_path / "parts") == 130
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    assert len(before) == 3
    capsys.readouterr()
    assert ask(tmp_path / "parts") == 0
    assert written[4:] == [f"part-{number:05d}.parquet" for number in range(3, 9)]
    assert {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in before} == before
    assert f"6 parts written, 3 were there before; {tmp_path / 'parts'}: all parts are there" in capsys.readouterr().err
    assert not [path.name for path in (tmp_path / "parts").iterdir() if path.name.startswith(".")]
    assert ask(tmp_path / "whole") == 0
    assert pq.read_table(tmp_path / "parts").equals(pq.read_table(tmp_path / "whole"))


def test_parts_of_other_shards_are_reported_as_missing(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path / "parts", "--shard", "1/4") == 0
    assert "3 parts written, 0 were there before; " in (said := capsys.readouterr().err)
    assert "6 parts of other processes are missing" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--include-seen"], "(--include-seen False there, True here)"),
        (["--users", "u"], "asked 'everyone' there"),
        (["--dtype", "bf16"], "(dtype 'float32' there, 'bfloat16' here"),
        (["--part-size", "8"], "(--part-size 7 there, 8 here"),
        (["--batch-size", "5"], "(--batch-size 4 there, 5 here)"),
    ],
)
def test_a_changed_question_is_refused(
    flags: list[str], words: str, ask: Ask, data: RecommendationData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tmp_path / "parts", "--shard", "1/9") == 0
    flags = [str(data.users["user_id"][0].as_py()) if flag == "u" else flag for flag in flags]
    assert ask(tmp_path / "parts", *flags) == 2
    said = capsys.readouterr().err
    assert "--output: " in said and "holds recommendations of another question" in said and words in said


def test_other_weights_in_the_same_folder_are_another_question(
    ask: Ask, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tmp_path / "parts", "--shard", "1/9") == 0
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + b"\0\0\0\0")
        assert ask(tmp_path / "parts") == 2
    finally:
        weights.write_bytes(before)
    assert "(model '" in capsys.readouterr().err


def test_a_folder_with_something_else_is_refused(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert ask(tmp_path) == 2
    assert f"--output: {tmp_path} is not empty and holds no _question.json; choose another folder" in capsys.readouterr().err
    (tmp_path / QUESTION_FILE).write_text("{")
    assert ask(tmp_path) == 2
    assert f"{tmp_path / QUESTION_FILE} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--users", "nobody"], ["--candidates", "nothing"], ["--num-beams", "3"], ["--include-seen"]])
def test_a_wrong_question_makes_no_folder(flags: list[str], ask: Ask, tmp_path: Path) -> None:
    k = 41 if flags == ["--include-seen"] else 5
    assert ask(tmp_path / "parts", *flags, k=k) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(InputError, match=f"shard is '{shard}'; give the number of this shard and of all shards, from 1/4 to 4/4"):
        share_of(shard)


def test_what_only_a_folder_has_is_refused_for_a_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["recommend", "--model", str(model)]
    assert main([*command, "--shard", "1/2"]) == 2
    assert "--shard: only a folder has parts; give --output FOLDER, or leave it out" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "parts"), "--part-size", "0"]) == 2
    assert "--part-size is 0" in capsys.readouterr().err or "part-size" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command, "--output", str(tmp_path / "one.parquet")]) == 2
    assert "--output: 2 processes were launched; give a folder, whose parts they share out" in capsys.readouterr().err


def test_pieces_of_the_item_table_change_no_answer(
    model: Path, data: RecommendationData, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = load_recommender(model, device="cpu")
    users = data.users["user_id"].to_pylist()
    items = data.items["item_id"].to_pylist()[::3]
    settings: dict[str, Any] = {"metrics": ["recall@5", "ndcg@10"], "n_resamples": 0, "progress": False}

    def answers() -> list[Any]:
        recommended = [recommender.recommend(users, k=7), recommender.recommend(users, k=7, candidates=items)]
        report = evaluate(recommender, data, "test", **settings)
        scores.extend(one.table["score"].to_numpy() for one in recommended)
        tables = [one.table.drop(["score"]) for one in recommended]
        return [*tables, *(values.tolist() for values in report.per_user.values())]

    scores: list[np.ndarray] = []
    whole = answers()
    monkeypatch.setattr("modeling_cllm4rec.cllm4rec.modeling_cllm4rec.items_per_piece", lambda rows: 3)
    assert answers() == whole
    for one, other in zip(scores[:2], scores[2:], strict=True):  # so few rows take another kernel
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    # Against all scores at once.
    every = recommender.score_histories(np.arange(60), data.histories("train"))
    ranked = recommender.rank_histories(np.arange(60), data.histories("train"), None, 40)
    assert ranked.tolist() == top_items.top_items(torch.from_numpy(every), 40)[0].tolist()


@pytest.mark.parametrize("row_group_size", [1, 3, 7, 1000])
def test_histories_are_read_by_row_groups(row_group_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"history": [[number] for number in range(20)], "user": [f"user {number}" for number in range(20)]})
    pq.write_table(table, tmp_path / "histories.parquet", row_group_size=row_group_size)
    file = HistoriesFile(str(tmp_path / "histories.parquet"))
    assert len(file) == 20
    for start, stop in [(0, 5), (5, 10), (6, 7), (0, 20), (19, 20), (3, 9)]:
        assert file.rows(start, stop).to_pydict() == table.slice(start, stop - start).to_pydict()
        assert file.read[1].num_rows <= max(stop - start + 2 * row_group_size, row_group_size)


def test_parts_of_a_histories_file_keep_its_names(ask: Ask, data: RecommendationData, tmp_path: Path) -> None:
    items = data.items["item_id"].to_pylist()
    histories = pa.table({"history": [items[number : number + 2] for number in range(10)], "user": [f"u{n}" for n in range(10)]})
    pq.write_table(histories, tmp_path / "histories.parquet", row_group_size=4)
    assert ask(tmp_path / "parts", "--histories", str(tmp_path / "histories.parquet")) == 0
    assert pq.read_table(tmp_path / "parts")["user"].to_pylist() == [f"u{number}" for number in range(10) for _ in range(5)]
    numbered = histories.drop(["user"])
    pq.write_table(numbered, tmp_path / "numbered.parquet")
    assert ask(tmp_path / "numbers", "--histories", str(tmp_path / "numbered.parquet")) == 0
    assert pq.read_table(tmp_path / "numbers")["user"].to_pylist() == [number for number in range(10) for _ in range(5)]


def test_the_function_of_the_guide_to_spark(model: Path, data: RecommendationData) -> None:
    """As `predict_batch_udf` calls it: once without arguments, then with arrays of users, which may repeat."""
    page = Path(__file__).parents[2] / "docs" / "guides" / "inference.md"
    (code,) = [block.code for block in blocks(page) if "def make_recommend" in block.code]
    given: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), given)  # noqa: S102
    recommend = given["make_recommend"](str(model), k=3)
    users = data.users["user_id"].to_pylist()[:4]
    found = recommend(np.array([*users, users[0], "nobody"], dtype=object))
    table = load_recommender(model, device="cpu").recommend(users, k=3).table.to_pylist()
    expected = [[row["item"] for row in table if row["user"] == user] for user in users]
    assert [row["items"].tolist() for row in found] == [*expected, expected[0], []]
    assert [row["scores"].shape for row in found] == [(3,)] * 5 + [(0,)]  # Spark refuses lists: it asks for their shape


@pytest.mark.slow
def test_processes_of_a_launch_share_an_evaluation_and_the_parts(
    model: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "modeling_cllm4rec"]
    question = [
        "evaluate",
        "--model",
        str(model),
        "--data",
        str(data_folder),
        "--batch-size",
        "8",
        "--metrics",
        "recall@5",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    reports = []
    for start, output in (([sys.executable, "-m", "modeling_cllm4rec"], "one"), (launch, "two")):
        done = subprocess.run(
            [*start, *question, "--output", str(tmp_path / output)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))  # printed once
    assert [one["CLLM4Rec"]["metrics"] for one in reports[1:]] == [reports[0]["CLLM4Rec"]["metrics"]]
    parts = ["recommend", "--model", str(model), "--part-size", "8", "--output", str(tmp_path / "parts")]
    done = subprocess.run([*launch, *parts], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "parts").num_rows == 600
