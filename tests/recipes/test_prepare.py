"""The command `recipes/prepare.py`."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipe_modules import load_recipe

from modeling_cllm4rec.corpora.data_folder import RecommendationData

RECIPE = Path(__file__).parents[2] / "recipes" / "prepare.py"
ROWS = [
    {
        "user_id": f"user_{user}",
        "item_id": f"item {(user + step) % 7}",
        "rating": 5.0 - step % 3,
        "timestamp": 100 * step,
        "review": f"user {user} at step {step}",
    }
    for user in range(6)
    for step in range(6)
]
ITEMS = [{"item_id": f"item {item}", "title": f"Title, {item}", "tags": ["a", "b"], "price": 1.5} for item in range(7)]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("prepare")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Write the same interactions in every kind of file."""
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "r.parquet")
    pq.write_table(pa.Table.from_pylist(ITEMS), tmp_path / "items.parquet")
    lines = [",".join(table.column_names), *(",".join(str(value) for value in row.values()) for row in ROWS)]
    (tmp_path / "r.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    return {name: str(tmp_path / name) for name in ("r.parquet", "r.csv.gz", "r.jsonl", "saved", "items.parquet")}


def test_all_sources_give_the_same_folder(recipe: ModuleType, sources: dict[str, str], tmp_path: Path) -> None:
    made = []
    for name in ("r.parquet", "r.csv.gz", "r.jsonl", "saved"):
        output = tmp_path / f"from {name}"
        arguments = ["--items", sources["items.parquet"], "--exclude-item-columns", "tags", "--min-rating", "4"]
        assert recipe.main(["--interactions", sources[name], *arguments, "--output", str(output)]) == 0
        made.append(RecommendationData.load(output))
    for data in made:
        assert data.interactions.equals(made[0].interactions)
        assert data.items.to_pydict() == {
            "item_id": [f"item {item}" for item in range(7)],
            "title": [f"Title, {item}" for item in range(7)],
            "price": ["1.5"] * 7,
        }
        assert data.info["protocol"] == made[0].info["protocol"]
    digest = hashlib.sha256(Path(sources["r.jsonl"]).read_bytes()).hexdigest()
    assert made[2].info["sources"][0] == {"table": "interactions", "file": "r.jsonl", "sha256": digest}


def test_columns_users_and_given_split(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{user},{item},{fold}\n" for user in "ab" for item, fold in enumerate(("train", "validation", "test")))
    (tmp_path / "r.csv").write_text("who,what,fold\n" + rows)
    (tmp_path / "users.csv").write_text("name,biography,age\nb,reads,9\na,,8\n")
    arguments = [
        *("--interactions", str(tmp_path / "r.csv"), "--user-column", "who", "--item-column", "what"),
        *("--split", "given", "--split-column", "fold", "--output", str(tmp_path / "data")),
        *("--users", str(tmp_path / "users.csv"), "--users-id-column", "name", "--user-columns", "biography"),
    ]
    assert recipe.main(arguments) == 0
    data = RecommendationData.load(tmp_path / "data")
    assert data.users.to_pydict() == {"user_id": ["a", "b"], "biography": [None, "reads"]}
    assert data.items.to_pydict() == {"item_id": [0, 1, 2]}
    assert data.histories("test").items.tolist() == [2, 2]
    printed = capsys.readouterr().out
    assert "given split; last of repeated pairs kept" in printed
    assert re.search(r"^interactions +6$", printed, re.MULTILINE)


def test_filters_are_logged(
    recipe: ModuleType, sources: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        arguments = ["--min-rating", "4", "--k-core", "3", "--output", str(tmp_path / "data")]
        assert recipe.main(["--interactions", sources["r.parquet"], *arguments]) == 0
    assert "min_rating 4.0: removed 12 rows" in caplog.text
    assert "k_core 3: removed" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interactions", "none.csv"], "none.csv: there is no such file or folder"),
        (
            ["--interactions", "{r.parquet}", "--user-column", "user"],
            "no column 'user'; it has user_id, .*did you mean",
        ),
        (["--interactions", "{r.parquet}", "--min-rating", "6"], "no interaction is left of 36"),
        (["--interactions", "{r.parquet}", "--split", "given"], "no column 'split'"),
        (["--interactions", "{r.parquet}", "--timestamp-column", "review"], "timestamp is neither seconds since 1970"),
        (
            ["--interactions", "{r.parquet}", "--items", "{r.parquet}"],
            "items: item_id is repeated with different texts: 'item 1'",
        ),
        (
            ["--interactions", "{r.parquet}", "--split", "temporal", "--temporal-cuts", "0.9", "0.8"],
            "--temporal-cuts must be two shares",
        ),
    ],
)
def test_bad_input_is_one_line(
    recipe: ModuleType,
    sources: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    filled = [sources.get(argument.strip("{}"), argument) for argument in arguments]
    assert recipe.main([*filled, "--output", str(tmp_path / "data")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cllm4rec prepare: error: ")]
    assert len(said) == 1
    assert re.search(message, said[0])
    assert not (tmp_path / "data").exists()


def test_output_that_is_taken(
    recipe: ModuleType, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--interactions", sources["r.parquet"], "--output", str(tmp_path / "data")]
    assert recipe.main(arguments) == 0
    assert recipe.main(arguments) == 2
    assert re.search("cllm4rec prepare: error: .* holds a data folder already .*pass --overwrite", capsys.readouterr().err)
    assert recipe.main([*arguments, "--overwrite", "--seed", "1"]) == 0
    assert RecommendationData.load(tmp_path / "data").info["protocol"]["seed"] == 1


def test_abbreviated_and_unknown_flags(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--interaction", "--colour"):
        with pytest.raises(SystemExit, match="2"):
            recipe.main(["--interactions", "a.csv", "--output", "b", flag, "c"])
        assert f"unknown flag '{flag}'" in capsys.readouterr().err


def test_as_a_script_from_another_folder(sources: dict[str, str], tmp_path: Path) -> None:
    """The help has its example; bad input ends without a traceback."""
    environment = {"PYTHONPATH": str(RECIPE.parents[1]), "PATH": ""}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(RECIPE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)

    ended = run("--help")
    assert ended.returncode == 0
    assert "cllm4rec prepare --interactions reviews.parquet" in ended.stdout
    failed = run("--interactions", "r.jsonl", "--item-column", "thing", "--output", "data")
    assert failed.returncode == 2
    assert "cllm4rec prepare: error: r.jsonl: no column 'thing'" in failed.stderr
    assert "Traceback" not in failed.stderr
