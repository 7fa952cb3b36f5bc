"""The commands, end to end on the tiny world: pretrain, finetune, evaluate, recommend; and one line for bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.commands import recommendation_tables
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.report import EvaluationReport

RECIPES = Path(__file__).parents[2] / "recipes"
Main = Callable[..., int]


@pytest.fixture(scope="module")
def pretrain(mains: dict[str, Main]) -> Main:
    return mains["pretrain"]


@pytest.fixture(scope="module")
def finetune(mains: dict[str, Main]) -> Main:
    return mains["finetune"]


@pytest.fixture(scope="module")
def evaluate(mains: dict[str, Main]) -> Main:
    return mains["eval"]


@pytest.fixture(scope="module")
def recommend(mains: dict[str, Main]) -> Main:
    return mains["recommend"]


@pytest.fixture(scope="module")
def config(data_folder: Path, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    values = {
        "data": str(data_folder),
        "per_device_train_batch_size": 32,
        "max_text_tokens": 12,
        "learning_rate": "1e-2",
        "pretrain": {"backbone": str(tiny_backbones["gpt2"]), "num_train_epochs": 1, "content_share": 0.3},
        "finetune": {"num_train_epochs": 2, "content_every": 1},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def run(config: Path, pretrain: Main, finetune: Main, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run: read it, and evaluate it with `--output` elsewhere."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert pretrain("--config", config, "--output", folder) == 0
    assert finetune("--config", config, "--output", folder) == 0
    return folder


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    """Check that the error is one line, the last one, with no traceback; libraries may have shown progress before."""
    lines = capsys.readouterr().err.splitlines()
    assert sum(": error: " in line for line in lines) == 1, lines
    assert re.search(message, lines[-1]), lines[-1]
    assert not any("Traceback" in line for line in lines)


# ---- training ----


def test_what_a_run_leaves(run: Path) -> None:
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"checkpoints", "corpus", "pretrained"}
    model_files = {
        "config.json",
        "model.safetensors",
        "catalogue.parquet",
        "users.parquet",
        "tokenizer.json",
        "tokenizer_config.json",
        "modeling_cllm4rec.py",
        "tokenization_cllm4rec.py",
    }
    assert model_files <= {path.name for path in run.iterdir()}
    assert model_files <= {path.name for path in (run / "pretrained").iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"pretrain", "finetune"}
    for stage in ("pretrain", "finetune"):
        names = {path.name for path in (run / "checkpoints" / stage).iterdir()}
        assert {"best", "run.json"} < names
        assert 1 <= sum(name.startswith("step-") for name in names) <= 2
        assert not [name for name in names if "." in name and name != "run.json"]


def test_the_record_of_a_run(run: Path, data_folder: Path) -> None:
    record = json.loads((run / "training.json").read_text())
    assert set(record) == {"pretrain", "finetune"}
    assert record["finetune"]["arguments"]["learning_rate"] == 0.01
    assert record["finetune"]["arguments"]["start"] == str(run / "pretrained")
    assert [epoch["epoch"] for epoch in record["finetune"]["history"]] == [0, 1]
    card = (run / "README.md").read_text()
    assert "Training: pretrain" in card and "Training: finetune" in card
    losses = [epoch["train/recommendation_nll"] for epoch in record["finetune"]["history"]]
    assert losses[1] < losses[0]
    assert f"cllm4rec finetune --data {data_folder} --output {run}" in card
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (run / "training_curves.png").exists() == drawn == ("(training_curves.png)" in card)


def test_the_same_command_again_is_refused(run: Path, config: Path, finetune: Main, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert finetune("--config", config, "--output", run) == 2
    assert_one_line(capsys, "finetune: error: --output: .* holds a run already; pass --resume")
    assert (run / "model.safetensors").read_bytes() == before


def test_stop_and_resume(config: Path, run: Path, finetune: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", config, "--output", tmp_path / "run", "--start", run / "pretrained"]
    assert finetune(*argv, "--stop_after_steps", "1") == 0
    assert "finetune: stopped after step 1; go on with --resume" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    capsys.readouterr()
    assert finetune(*argv, "--resume", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == printed["output"] == str(tmp_path / "run") and printed["finished"] and printed["step"] > 1
    record = json.loads((tmp_path / "run" / "training.json").read_text())["finetune"]
    assert printed["metrics"] == record["history"][record["best_epoch"]]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_stage_measures_baselines_at_its_end(
    config: Path, run: Path, finetune: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", config, "--output", tmp_path / "run", "--start", run / "pretrained", "--num_train_epochs", 1]
    assert finetune(*argv, "--baselines", "popularty") == 2
    assert_one_line(capsys, "error: there is no baseline 'popularty'; did you mean 'popularity'")
    assert not (tmp_path / "run").exists()
    assert finetune(*argv, "--baselines") == 0
    assert "CLLM4Rec" in capsys.readouterr().err
    report = EvaluationReport.load(tmp_path / "run" / "evaluation-validation-given-train.json")
    assert list(report.metrics) == ["recall@20", "recall@40"] and report.protocol.split == "validation"
    assert list(report.baselines) == ["popularity", "ease+textknn"]
    low, high = report.baselines["popularity"].differences["recall@20"][1:]
    relation = "below" if high < 0 else "above" if low > 0 else "not significantly different from"
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"This model is .*{relation} [^;]*popularity on recall@20", card)
    assert "## Sample recommendations" in card and (tmp_path / "run" / "data_card.md").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "error: nowhere: there is no such data folder"),
        (["--num-train-epoch", "3"], r"error: unknown flag '--num-train-epoch'; did you mean '--num-train-epochs'"),
        (["--epochs", "-1"], "error: --num-train-epochs is -1; it must be [01] or more"),
        (["--config", "missing.yaml"], "error: --config: there is no file missing.yaml"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_bad_training_input_is_one_line(
    stage: str,
    flags: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    argv = [] if "--config" in flags else ["--config", config]
    main = request.getfixturevalue(stage)
    assert main(*argv, "--output", tmp_path / "run", *flags) == 2
    assert_one_line(capsys, f"cllm4rec {stage}: {message}")


def test_an_unknown_yaml_key_is_one_line(pretrain: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("data: d\nnum_train_epoch: 3\n")
    assert pretrain("--config", tmp_path / "bad.yaml", "--output", tmp_path / "run") == 2
    assert_one_line(capsys, r"pretrain: error: .*bad\.yaml: unknown key 'num_train_epoch'; did you mean 'num_train_epochs'")


def test_a_backbone_that_is_not_there_is_one_error(
    pretrain: Main, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain("--config", config, "--output", tmp_path / "run", "--backbone", tmp_path / "nowhere") == 2
    assert_one_line(capsys, "pretrain: error: --backbone: .*nowhere is no folder with a language model")


def test_finetuning_before_pretraining(finetune: Main, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("--config", config, "--output", tmp_path / "run") == 2
    assert_one_line(capsys, "finetune: error: --start: there is no folder .*pretrained; run `cllm4rec pretrain` first")


def test_help_names_every_argument(finetune: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        finetune("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "accelerate launch recipes/finetune.py" in text and "cllm4rec finetune --data" in text
    assert all(flag in text for flag in ("--config", "--mask_share", "--resume", "--tune"))


# ---- evaluation ----

METRICS = ["--metrics", "recall@10", "ndcg@10", "coverage@10"]


def test_evaluation_prints_a_table_and_saves_a_report(
    run: Path, data_folder: Path, evaluate: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = ["--baselines", "popularity", "random"]
    assert evaluate("--model", run, "--data", data_folder, *METRICS, *baselines, "--output", tmp_path) == 0
    table = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows == ["model", "---", "popularity", "random", "CLLM4Rec"]
    assert "Protocol: " in table and "test" in table
    report = EvaluationReport.load(tmp_path / "evaluation-test-given-train.json")
    assert list(report.metrics) == METRICS[1:]
    assert f"{report.metrics['recall@10']:.4f}" in table
    per_user = pq.read_table(tmp_path / "evaluation-test-given-train.parquet")
    assert per_user.column_names == ["user_index", "recall@10", "ndcg@10"]
    assert report.metrics["recall@10"] == pytest.approx(sum(per_user["recall@10"].to_pylist()) / per_user.num_rows)


def test_evaluation_given_validation_too(
    run: Path, data_folder: Path, evaluate: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", run, "--data", data_folder, *METRICS, "--output", tmp_path, "--baselines"]
    assert evaluate(*argv, "--test-history", "train+validation") == 0
    report = EvaluationReport.load(tmp_path / "evaluation-test-given-train-validation.json")
    assert report.protocol.masked == report.protocol.test_history == "train+validation"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["model", "---", "CLLM4Rec"]


def test_a_quick_look_replaces_nothing(run: Path, data_folder: Path, evaluate: Main, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    argv = ["--model", folder, "--data", data_folder, *METRICS, "--baselines"]
    assert evaluate(*argv) == 0
    header, _, text = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    assert evaluate(*argv, "--max-users", "5", "--mask", "none") == 0
    names = {path.stem for path in folder.glob("evaluation-*.json")}
    assert names == {"evaluation-test-given-train", "evaluation-test-given-train-masked-none-5-users"}
    later_header, _, later = (folder / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    assert later_header == header and "recall@10 (train histories)" in header
    assert later.index("60 users") < later.index("masked none; ") < later.index("5 users (a random sample of")
    assert "--max-users 5 --mask none" in later and "--max-users" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "nowhere: there is no such data folder"),
        (["--metrics", "recal@10"], r"unknown metric 'recal@10': .*did you mean 'recall@10'\?"),
        (["--metrics", "recall@41"], "recall@41 needs 41 items, the catalogue has 40; choose a smaller k"),
        (["--model", "nowhere/model"], "--model: nowhere/model is no folder with a model"),
        (["--split", "validation", "--test-history", "train+validation"], "validation"),
    ],
)
def test_bad_evaluation_input_is_one_line(
    flags: list[str],
    message: str,
    run: Path,
    data_folder: Path,
    evaluate: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = [] if METRICS[0] in flags else METRICS  # one flag twice is another error
    assert evaluate("--model", run, "--data", data_folder, *metrics, "--output", tmp_path, *flags) == 2
    assert_one_line(capsys, f"cllm4rec evaluate: error: .*{message}")
    assert not list(tmp_path.iterdir())


# ---- recommendations ----


@pytest.fixture(scope="module")
def model(run: Path) -> CLLM4RecForRecommendation:
    return CLLM4RecForRecommendation.from_pretrained(run)


def printed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_recommendations_for_users_are_printed_with_titles(
    run: Path, data: RecommendationData, model: CLLM4RecForRecommendation, recommend: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    users = data.users["user_id"].to_pylist()[3:5]
    assert recommend("--model", run, "--users", *users, "--k", "4") == 0
    rows = printed(capsys)
    expected = model.recommend(users=users, k=4).to_pylist()
    assert [(row[0], int(row[1]), row[2]) for row in rows] == [(one["user"], one["rank"], one["item"]) for one in expected]
    titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist(), strict=True))
    assert [row[4] for row in rows] == [titles[row[2]] for row in rows]
    seen = {data.items["item_id"][int(item)].as_py() for item in model.users.history(3)}  # type: ignore[union-attr]
    assert not seen & {row[2] for row in rows if row[0] == users[0]}


def test_recommendations_among_candidates_and_with_what_was_seen(
    run: Path, data: RecommendationData, recommend: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    user, items = data.users["user_id"][0].as_py(), data.items["item_id"].to_pylist()[:3]
    assert recommend("--model", run, "--users", user, "--k", "3", "--include-seen", "--candidates", *items) == 0
    assert {row[2] for row in printed(capsys)} == set(items)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("named", [False, True])
def test_recommendations_for_a_file_of_histories(
    kind: str,
    named: bool,
    run: Path,
    data: RecommendationData,
    model: CLLM4RecForRecommendation,
    recommend: Main,
    tmp_path: Path,
) -> None:
    items, users = data.items["item_id"].to_pylist(), data.users["user_id"].to_pylist()
    histories = [items[2:5], [items[7]], items[:6]]
    rows = [{"history": history} | ({"user_id": users[9 - n]} if named else {}) for n, history in enumerate(histories)]
    path = tmp_path / f"users.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert recommend("--model", run, "--histories", path, "--k", "5", "--output", tmp_path / "out" / "recs.parquet") == 0
    table = pq.read_table(tmp_path / "out" / "recs.parquet")
    expected = model.recommend(users=[users[9 - n] for n in range(3)] if named else None, histories=histories, k=5).table
    assert table.column_names == ["user", "item", "rank", "score"]
    for name in ("user", "item", "rank"):
        assert table[name].to_pylist() == expected[name].to_pylist()


def test_user_ids_are_returned(
    run: Path,
    data: RecommendationData,
    model: CLLM4RecForRecommendation,
    recommend: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three users in batches of two, with user ids and with row numbers. Unread columns are logged."""
    monkeypatch.setattr(recommendation_tables, "USERS_AT_ONCE", 2)
    items = data.items["item_id"].to_pylist()
    histories = [items[2:5], [items[7]], items[:6]]
    expected = model.recommend(histories=histories, k=2).table["item"].to_pylist()
    for names in (["zoë", "b", "a"], None):
        table = pa.table({"history": histories, "age": [30, 40, 50]} | ({"user": names} if names else {}))
        pq.write_table(table, tmp_path / "users.parquet")
        assert (
            recommend("--model", run, "--histories", tmp_path / "users.parquet", "--k", 2, "--output", tmp_path / "out.parquet")
            == 0
        )
        answer = pq.read_table(tmp_path / "out.parquet")
        assert answer["item"].to_pylist() == expected
        assert answer["user"].to_pylist() == [name for name in names or range(3) for _ in range(2)]
    assert "users.parquet that are not read: age" in caplog.text


def test_recommendations_for_everyone(
    run: Path, data: RecommendationData, recommend: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "everyone.parquet"
    assert recommend("--model", run, "--k", "3", "--output", path, "--batch-size", "7") == 0
    table = pq.read_table(path)
    assert table["user"].to_pylist() == [user for user in data.users["user_id"].to_pylist() for _ in range(3)]
    assert table["rank"].to_pylist() == [1, 2, 3] * data.num_users
    assert f"{3 * data.num_users} recommendations written" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["everyone.parquet"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--users", "nobody"], r"--users is \['nobody'\]; allowed: the 60 user_ids.* pass --on-unknown skip to leave them"),
        (["--users", "nobody", "none", "--on-unknown", "skip"], "--on-unknown skip leaves no user: .* knows none of those"),
        (["--k", "41"], "--k is 41; allowed: a whole number from 1 to 40"),
        (["--k", "0"], "--k is 0; allowed: a whole number from 1 to 40"),
        (["--candidates", "nothing"], r"--candidates is \['nothing'\]; allowed: the 40 item_ids"),
        (["--histories", "nowhere.parquet"], "--histories: there is no file nowhere.parquet"),
        (["--model", "nowhere/model"], "--model: nowhere/model is no folder with a model"),
    ],
)
def test_bad_questions_are_one_line(
    flags: list[str], message: str, run: Path, recommend: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend("--model", run, "--output", tmp_path / "recs.parquet", *flags) == 2
    assert_one_line(capsys, f"cllm4rec recommend: error: .*{message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"--histories: .*users\.jsonl is neither Parquet nor JSON lines|is empty"),
        ("not json\n", r"--histories: .*users\.jsonl is neither Parquet nor JSON lines"),
        ('{"items": ["a"]}\n', r"users\.jsonl has columns \['items'\]; it needs 'history'"),
        ('{"history": []}\n', r"histories\[0\] is \[\]; allowed: a history with at least one known item|needs 'history'"),
        ('{"history": ["nothing"]}\n', r"histories\[0\] is \['nothing'\]; allowed: the 40 item_ids"),
        ('{"history": null}\n', r"histor"),
        ('{"history": "B1"}\n', r"histor"),
        ('{"history": 5}\n', r"histor"),
        ('{"history": ["B1"], "user": "a", "user_id": "b"}\n', "has columns 'user_id' and 'user'; keep 'user_id' for users that"),
        ('{"history": [5]}\n', r"histories\[0\] is \[5\]; allowed: strings"),
    ],
)
def test_bad_histories_are_one_line(
    content: str, message: str, run: Path, recommend: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(content)
    assert recommend("--model", run, "--histories", path) == 2
    assert_one_line(capsys, f"cllm4rec recommend: error: .*({message})")


def test_a_command_from_another_folder(run: Path, data: RecommendationData, tmp_path: Path) -> None:
    """`python /somewhere/recipes/recommend.py` with the package installed, started anywhere, model by relative path."""
    user = data.users["user_id"][0].as_py()
    ended = subprocess.run(
        [sys.executable, str(RECIPES / "recommend.py"), "--model", run.name, "--users", user, "--k", "2"],
        cwd=run.parent,
        env={**os.environ, "PYTHONPATH": str(RECIPES.parent)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [line.split("\t")[0] for line in ended.stdout.splitlines()] == [user, user]
    assert "Traceback" not in ended.stderr
