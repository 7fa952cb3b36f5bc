"""Means over seeds, intervals, paired differences, verdicts, from hand-made results."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.benchmark.jobs import BenchmarkConfig, Condition, Job, file_name
from modeling_cllm4rec.benchmark.page import HEAD, HEAD_END, head_of, write_page
from modeling_cllm4rec.benchmark.report import MARKER, without_paths, write_report
from modeling_cllm4rec.benchmark.results import read_tables, summary_of, verdicts
from modeling_cllm4rec.evaluation.intervals import bootstrap_interval, paired_difference_interval
from modeling_cllm4rec.evaluation.verdicts import Estimate, short

USERS = np.arange(40, dtype=np.int32)
GENERATOR = np.random.default_rng(0)
EASE = GENERATOR.random(40) * 0.2
OURS = [EASE + 0.1 + GENERATOR.random(40) * 0.02 for _ in range(2)]
POPULAR = EASE * 0.5
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    setting = BenchmarkConfig(
        "quality",
        "books",
        "random split",
        "hash",
        {"users": 40, "items": 9, "train": 80, "validation": 40, "test": 40},
        ("recall@5", "coverage@5"),
        (Condition("train", "train"), Condition("train", "train", 3)),
    )
    (tmp_path / "report").mkdir()
    setting.save(tmp_path / "report")
    return tmp_path / "report"


@pytest.fixture
def write(folder: Path) -> Write:
    """Write the result of a job whose users have these values of recall@5."""

    def one(model: str, system: Any, seed: int, values: np.ndarray | str, users: np.ndarray = USERS, **recipe: Any) -> Path:
        command = f"p --models {model}=runs/{seed}" if system == "folder" else f"p --models {model} --seed {seed}"
        job = Job(model, system, seed, {"settings": recipe}, about="made by hand", command=command)
        result: dict[str, Any] = {"job": dataclasses.asdict(job), "fingerprint": "f"}
        if isinstance(values, str):
            result |= {"status": "failed", "error": values}
        else:
            result |= done(folder, job, values, users)
        place = folder / "jobs" / f"{file_name(job.key)}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(result))
        return place

    return one


def done(folder: Path, job: Job, values: np.ndarray, users: np.ndarray) -> dict[str, Any]:
    measured = []
    for condition in BenchmarkConfig.load(folder).conditions:
        place = f"per_user/{job.key}.{condition.key}.parquet"
        (folder / "per_user").mkdir(exist_ok=True)
        columns = {
            "user_index": users,
            "history_length": np.arange(len(users), dtype=np.int32) % 4 + 1,
            "recall@5": values,
            "popularity:0-4": pa.array(values, mask=np.arange(len(users)) % 2 == 0),
        }
        pq.write_table(pa.table(columns), folder / place)
        protocol = {"dataset": "books", "splitting": "random", "split": "test", "test_history": "train", "masked": "train"}
        measured.append(
            {
                "condition": list(condition),
                "protocol": {**protocol, "items": 9, "users": len(users), "excluded_users": 2},
                "metrics": {"recall@5": float(values.mean()), "coverage@5": 0.5},
                "milliseconds_per_user": 2.0,
                "per_user": place,
            }
        )
    cost = {"train_seconds": 10.0 * job.seed, "peak_bytes": job.seed * 10**9, "peak_device_bytes": 0, "wall_seconds": 30.0}
    cost |= {"train_peak_bytes": 5 * 10**9, "train_peak_device_bytes": None}
    origin = {"machine": "a machine", "threads": 1, "versions": {"torch": "2"}, "settings": {"backbone": "/home/ann/lm/mine"}}
    return {"status": "done", "measured": measured, **cost, **origin}


@pytest.fixture
def filled(folder: Path, write: Write) -> Path:
    write("popularity", "baseline", 1, POPULAR)
    write("ease", "baseline", 1, EASE)
    for seed in (1, 2):
        write("cllm4rec", "cllm4rec", seed, OURS[seed - 1])
    write("cllm4rec", "cllm4rec", 3, "FileNotFoundError: no file /home/ann/runs/x.json | here")
    write("sasrec", "baseline", 1, "ended by signal SIGKILL, perhaps for want of memory")
    return folder


def test_statistics_by_hand(filled: Path) -> None:
    table = read_tables(filled, 200)[1][0]
    rows = {row.model: row for row in table.rows}
    assert list(rows) == ["popularity", "ease", "sasrec", "cllm4rec"]
    ours, means = rows["cllm4rec"], [values.mean() for values in OURS]
    assert ours.seeds == [1, 2]
    assert ours.means["recall@5"] == pytest.approx(np.mean(means))
    assert ours.deviations["recall@5"] == pytest.approx(np.std(means, ddof=1))
    per_user = np.mean(OURS, axis=0)
    assert ours.estimates["recall@5"][1:3] == bootstrap_interval(np.array(OURS), n_resamples=200)
    assert table.references == {"recall@5": "EASE"}
    assert ours.differences["recall@5"].mean == pytest.approx((per_user - EASE).mean())
    assert ours.differences["recall@5"][1:3] == paired_difference_interval(np.array(OURS), EASE, n_resamples=200)
    assert rows["ease"].differences == {} and "coverage@5" not in ours.estimates
    assert ours.resources["train_seconds"] == 15.0 and ours.resources["peak_bytes"] == 2e9
    odd = per_user[1::2]
    assert ours.slices["popularity"]["0-4"].mean == pytest.approx(odd.mean()) and ours.slices["popularity"]["0-4"].users == 20
    assert [one.users for one in ours.slices["history_length"].values()] == [10, 10, 10, 10]
    assert ours.slices["history_length"]["2"].mean == pytest.approx(odd[::2].mean())


def test_failures_are_named_and_the_others_are_kept(filled: Path) -> None:
    rows = {row.model: row for row in read_tables(filled, 50)[1][0].rows}
    assert rows["sasrec"].seeds == [] and "SIGKILL" in rows["sasrec"].errors[1]
    assert list(rows["cllm4rec"].errors) == [3]


def test_the_verdicts_of_a_row_in_one_line(filled: Path) -> None:
    table = read_tables(filled, 50)[1][0]
    (row,) = [one for one in table.measured if not one.is_baseline]
    row.differences = {
        "recall@20": Estimate(0.02, 0.01, 0.03, 9),
        "recall@40": Estimate(0.5, 0.25, 0.75, 9),
        "ndcg@100": Estimate(-0.01, -0.02, 0.001, 9),
    }
    table.references = {"recall@20": "A", "recall@40": "A", "ndcg@100": "B"}
    assert summary_of(row, table) == (
        "over 2 training seeds: above A on recall@20 (+.0200 [.0100, .0300]), recall@40 (+.5000 [.2500, .7500]); "
        "no significant difference from B on ndcg@100 (-.0100 [-.0200, .0010])"
    )
    row.differences = {"recall@20": Estimate(-0.02, -0.03, -0.01, 9)}
    assert summary_of(row, table) == "over 2 training seeds: below A on recall@20 (-.0200 [-.0300, -.0100])"


def test_verdicts_of_systems_only(filled: Path) -> None:
    (line,) = verdicts(read_tables(filled, 50)[1][0])
    assert line.startswith("CLLM4Rec is above EASE by .1") and line.endswith("on recall@5.")


def test_report_says_what_it_must(filled: Path) -> None:
    text = write_report(filled, 50, plots=False)
    assert text == (filled / "report.md").read_text()
    assert "nan" not in text.lower() and "/home" not in text
    assert "| SASRec | - | failed: ended by signal SIGKILL, perhaps for want of memory | |" in text
    assert "CLLM4Rec: seed 3 failed: FileNotFoundError: no file x.json | here." in text
    assert "`p --models cllm4rec --seed 1 2 3`" in text
    assert "2 without test items left out" in text
    table = text.partition("| CLLM4Rec minus | recall@5 |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([\w-]+) \| \+\.\d{4} \[\.\d{4}, \.\d{4}\] \|$", table, re.MULTILINE) == ["popularity", "EASE"]
    assert 'CLLM4Rec: `{"backbone": "mine"}`' in text
    assert "| made by hand | - | 1, 2 | 15.0 s | 5.00 GB | 2.00 ms | 30.0 s | 2.00 GB | `p" in text
    full, sampled = text.split("SAMPLED METRICS, 3 random items, not comparable with full ranking")
    assert "recall@5 (sampled) - EASE" in sampled and "on recall@5 (sampled)." in sampled
    assert "(sampled)" not in full and "| recall@5 (sampled) | coverage@5 (sampled) |" in sampled


def test_folders_of_one_name_are_seeds_of_one_row(folder: Path, write: Write) -> None:
    write("ease", "baseline", 1, EASE)
    for seed in (7, 42):
        write("mine", "folder", seed, OURS[seed % 2])
    text = write_report(folder, 50, plots=False)
    row = next(row for row in read_tables(folder, 50)[1][0].rows if row.model == "mine")
    assert row.seeds == [7, 42] and row.deviations["recall@5"] > 0
    assert f"| mine | 2 | **{short(row.means['recall@5'])} ± " in text
    assert "`p --models mine=runs/7,mine=runs/42`" in text, "the command names all of them"


def test_paths_below_the_working_directory_stay(filled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs" / "a.json"
    assert without_paths(f"no {place} in ./runs/b or ../c, /home/d") == "no runs/a.json in runs/b or c, d"


def test_results_as_parquet(filled: Path) -> None:
    write_report(filled, 50, plots=False)
    rows = pq.read_table(filled / "results.parquet").to_pylist()
    assert len(rows) == 2 * 4 * 2
    ours = next(row for row in rows if row["model"] == "cllm4rec" and row["metric"] == "recall@5")
    assert ours["reference"] == "EASE" and ours["difference_low"] > 0 and ours["seeds"] == 2
    other = next(one for one in ours["to_baselines"] if one["baseline"] == "popularity")
    values = np.mean(OURS, axis=0)
    assert other["difference"] == pytest.approx((values - POPULAR).mean())
    assert (other["difference_low"], other["difference_high"]) == paired_difference_interval(
        np.array(OURS), POPULAR, n_resamples=50
    )
    assert {one["baseline"] for one in ours["to_baselines"]} == {"popularity", "EASE"}
    failed = next(row for row in rows if row["model"] == "sasrec")
    assert failed["mean"] is None and "SIGKILL" in failed["errors"]
    assert {row["sampled_negatives"] for row in rows} == {0, 3}


def test_plots_are_drawn(filled: Path) -> None:
    pytest.importorskip("matplotlib")
    text = write_report(filled, 50)
    for name in ("metrics", "cost", "popularity", "history_length"):
        place = f"plots/everyone-train-masked-train-{name}.png"
        assert f"]({place})" in text
        assert (filled / place).read_bytes().startswith(b"\x89PNG")
    assert not (filled / "plots" / "everyone-train-masked-train-sampled-3-popularity.png").exists()


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling_cllm4rec.benchmark import plots

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'not installed; run: pip install "cllm4rec\[benchmark\]", or pass no_plots=True'):
        plots.check_plots()


def test_seeds_of_other_users_or_settings_do_not_mix(folder: Path, write: Write) -> None:
    write("random", "baseline", 1, EASE)
    place = write("random", "baseline", 2, EASE, users=USERS + 1)
    with pytest.raises(ValueError, match="the seeds of random were measured on different users"):
        read_tables(folder)
    place.unlink()
    write("random", "baseline", 2, EASE, other="setting")
    with pytest.raises(ValueError, match="seeds of random have different settings; run all of them again"):
        read_tables(folder)


def test_models_of_other_users_do_not_compare(folder: Path, write: Write) -> None:
    write("ease", "baseline", 1, EASE)
    write("popularity", "baseline", 1, POPULAR, users=USERS + 1)
    with pytest.raises(ValueError, match="popularity and EASE were measured on different users"):
        read_tables(folder)


def test_folder_without_results(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no result yet"):
        read_tables(folder)


def test_page_of_reports(filled: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    text = write_page([filled], page, 50)
    assert text.startswith(MARKER) and page.read_text() == text
    head = head_of(text)
    assert "above EASE on" in head and "How each row" not in head
    assert "| EASE | 1 | .1" in head and "| EASE | 1 | .1056 [" not in head, "means alone"
    assert "- **CLLM4Rec** (Everyone, history train, masked train): " in head, "every protocol, not the first alone"
    assert "SAMPLED METRICS, 3 random items, not comparable with full ranking): " in head
    assert "### How each row came about" in text and "![" not in text and "/home" not in text
    assert write_page([filled], page, 50) == text  # a generated page is replaced
    folded = text.partition("<summary>Intervals, differences, slices, settings and commands</summary>\n\n")[2]
    assert folded.startswith("Data: ") and folded.rstrip().endswith("</details>") and "How each row" in folded


def test_plots_of_a_page(filled: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    page, picture = tmp_path / "docs" / "results.md", tmp_path / "docs" / "images" / "results-books.svg"
    text = write_page([filled], page, 50, plots=True)
    assert "](images/results-books.svg)" in text
    drawn = picture.read_bytes()
    assert b"CLLM4Rec" in drawn, "words stay words"
    write_page([filled], page, 50, plots=True)
    assert picture.read_bytes() == drawn, "a page that is made again does not change"


def test_head_of_the_page_is_in_the_readme(filled: Path, tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text(f"# Mine\n\n{HEAD}\nold\n{HEAD_END}\n\nMore.\n")
    text = write_page([filled], page, 50, readme)
    before, _, behind = readme.read_text().partition(head_of(readme.read_text()))
    assert (before, behind) == ("# Mine\n\n", "\n\nMore.\n")
    rows = [line for line in head_of(readme.read_text()).splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| books | seeds |")
    assert set(rows[1:]) < set(head_of(text).splitlines()) and any(row.startswith("| CLLM4Rec |") for row in rows)
    readme.write_text("# Mine")
    with pytest.raises(ValueError, match="README.md has no place for the head; put the lines <!-- head of the results"):
        write_page([filled], page, 50, readme)
    assert readme.read_text() == "# Mine"
    with pytest.raises(FileNotFoundError, match="readme: there is no .*none.md; name a page that has the lines"):
        write_page([filled], page, 50, tmp_path / "none.md")


def test_variants_are_not_in_the_head(filled: Path, tmp_path: Path) -> None:
    setting = BenchmarkConfig.load(filled)
    dataclasses.replace(setting, kind="ablation").save(filled)
    text = write_page([filled], tmp_path / "results.md", 50)
    assert "variants of the recipe" not in head_of(text) and "## books: variants of the recipe" in text


def test_page_written_by_hand_is_kept(filled: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Typed")
    with pytest.raises(FileExistsError, match="was not generated by this command; choose another name, or remove it first"):
        write_page([filled], page)
    assert page.read_text() == "# Typed"


def test_pages_that_cannot_be(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reports is empty"):
        write_page([], tmp_path / "a.md")
    with pytest.raises(ValueError, match="output must end in .md"):
        write_page([filled], tmp_path / "a.html")
    with pytest.raises(ValueError, match="two of the reports are of 'books: models and baselines'"):
        write_page([filled, filled], tmp_path / "a.md", 50)
    with pytest.raises(FileNotFoundError, match="is no report folder"):
        write_page([tmp_path], tmp_path / "a.md")
