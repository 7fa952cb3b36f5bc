"""`cllm4rec benchmark`, from flags to the report, on the small world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modeling_cllm4rec.benchmark.command import main
from modeling_cllm4rec.benchmark.results import read_tables
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.evaluator import evaluate
from modeling_cllm4rec.hub.loading import load_recommender

Quality = Callable[..., int]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cllm4rec benchmark: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_baselines_with_everything(
    quality: Quality, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--seeds", "2", "--tune", "3", "--hold-out-users", "0.2", "--sampled-negatives", "5", "--test-history", "both"]
    assert quality("--models", "popularity,random,ease", *flags) == 0
    printed = capsys.readouterr().out
    report = (tmp_path / "report" / "report.md").read_text()
    assert report.strip() in printed and "nan" not in report.lower()
    setting, tables = read_tables(tmp_path / "report", 20)
    assert len(setting.conditions) == 4 and len(tables) == 8
    assert {row.model: row.seeds for row in tables[0].rows} == {"random": [1, 2], "popularity": [1], "ease": [1]}
    assert tables[-1].case == "unseen-people" and tables[-1].rows[0].protocol.users == 12
    trials = json.loads((tmp_path / "report" / "tuning" / "ease-everyone.json").read_text())
    assert len(trials["trials"]) == 3 and set(trials["settings"]) == {"regularization"}
    assert "20% of the users were held out of training" in report
    assert "Epochs are also chosen on validation: of baselines by ndcg@10, if" in report
    assert "| EASE | linear model of items from items, deterministic | tuned on validation, 3 trials by recall@5 |" in report
    assert "| popularity | number of users, deterministic | nothing to tune |" in report and "Not tuned" not in report
    assert len(in_process) == 8 + 2  # jobs, and searches for the settings of EASE
    in_process.clear()
    assert quality("--models", "popularity,random,ease", *flags, "--json") == 0
    assert in_process == []
    printed = json.loads(capsys.readouterr().out)
    files = {"report": f"{tmp_path}/report/report.md", "results": f"{tmp_path}/report/results.parquet"}
    assert printed == {**files, "jobs": 8, "failed": 0}


def test_baselines_with_defaults_are_said_to_be_untuned(
    quality: Quality, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert quality("--models", "popularity,ease") == 0
    assert "ease: settings: defaults, not tuned on this data; add --tune N" in caplog.messages
    text = (tmp_path / "report" / "report.md").read_text()
    assert "**Not tuned**: EASE: settings: defaults, not tuned on this data; add --tune N." in text


def test_a_cell_comes_back_from_its_command(quality: Quality, tmp_path: Path) -> None:
    assert quality("--models", "random,popularity", "--seeds", "2") == 0
    assert quality("--models", "random", "--seed", "2", output=tmp_path / "again") == 0
    names = ["per_user/random-seed2.train-masked-train.parquet"]
    assert pq.read_table(tmp_path / "report" / names[0]).equals(pq.read_table(tmp_path / "again" / names[0]))


def test_sum_of_baselines_takes_what_was_found_for_each(quality: Quality, in_process: list[str], tmp_path: Path) -> None:
    assert quality("--models", "ease,itemknn,ease+itemknn,popularity", "--tune", "2") == 0
    assert in_process.count("ease-everyone") == in_process.count("itemknn-everyone") == 1  # searches
    rows = {row.model: row for row in read_tables(tmp_path / "report", 20)[1][0].rows}
    assert list(rows) == ["popularity", "itemknn", "ease", "ease+itemknn"] and rows["ease+itemknn"].title == "EASE + item-kNN"
    assert rows["ease+itemknn"].is_baseline
    for name in ("ease", "itemknn"):
        assert rows["ease+itemknn"].settings[name] == rows[name].settings
    found = json.loads((tmp_path / "report" / "tuning" / "ease-itemknn-everyone.json").read_text())
    assert rows["ease+itemknn"].settings["weights"] == found["settings"]["weights"] and len(found["trials"]) == 2
    assert rows["ease+itemknn"].chosen.endswith("; weights: tuned on validation, 2 trials by recall@5")


def test_commands_name_places_from_the_working_directory(
    quality: Quality, data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute or not, inside of it a path can be typed again; of others the last name is all that a report shows."""
    monkeypatch.chdir(data_folder.parent)
    assert quality("--models", "popularity", "--backbone", tiny_backbones["gpt2"]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "`cllm4rec benchmark quality --data small-world --backbone gpt2 --metrics" in text
    monkeypatch.chdir(data_folder.parents[1])
    assert quality("--models", "random") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"--data {data_folder.parent.name}/small-world --metrics" in text and str(data_folder) not in text


def test_seeds_of_other_settings_are_left_out_and_named(quality: Quality, in_process: list[str], tmp_path: Path) -> None:
    """After a change of the YAML file, what ran before is in no mean; changed back, nothing is run again."""
    config = tmp_path / "benchmark.yaml"
    settings = "baselines: {{multvae: {{hidden_size: {size}, latent_size: 4, epochs: 1, progress: false}}}}"
    for size, seeds in (("8", "3"), ("9", "2")):
        config.write_text(settings.format(size=size))
        assert quality("--models", "multvae", "--config", config, "--seeds", seeds) == 0
    (row,) = read_tables(tmp_path / "report", 20)[1][0].rows
    assert (row.seeds, row.left_out) == ([1, 2], {3: "run with other settings"})
    assert row.settings["hidden_size"] == 9 and row.command.endswith("--seed 1 2")
    assert "Mult-VAE: seed 3 is left out: run with other settings." in (tmp_path / "report" / "report.md").read_text()
    config.write_text(settings.format(size=8))
    in_process.clear()
    assert quality("--models", "multvae", "--config", config, "--seeds", "3") == 0
    assert in_process == ["multvae-seed1", "multvae-seed2"]
    (row,) = read_tables(tmp_path / "report", 20)[1][0].rows
    assert (row.seeds, row.left_out) == ([1, 2, 3], {})


def test_models_are_added_to_a_report(quality: Quality, tmp_path: Path) -> None:
    assert quality("--models", "popularity") == 0
    assert quality("--models", "ease") == 0
    assert [row.model for row in read_tables(tmp_path / "report", 20)[1][0].rows] == ["popularity", "ease"]
    assert quality("--models", "random", "--overwrite") == 0
    assert [row.model for row in read_tables(tmp_path / "report", 20)[1][0].rows] == ["random"]


def test_a_model_that_fails_is_in_the_table(
    quality: Quality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modeling_cllm4rec.benchmark import training

    fit = training.fit_baseline

    def sometimes(name: str, *more: object, **settings: object) -> object:
        if name == "ease":
            raise ImportError("ease needs a library; run: pip install 'cllm4rec[baselines]'")
        return fit(name, *more, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "fit_baseline", sometimes)
    assert quality("--models", "ease,popularity") == 1
    error = "1 of 2 jobs failed, ease-seed1: ImportError: ease needs a library; run: pip install 'cllm4rec[baselines]'; the same"
    assert error in error_of(capsys)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| EASE | - | failed: ImportError: ease needs a library; run: pip install 'cllm4rec[baselines]' |" in text
    monkeypatch.setattr(training, "fit_baseline", fit)
    assert quality("--models", "ease,popularity") == 0
    assert "failed" not in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "popularty"], "there is no 'popularty'; did you mean 'popularity'"),
        (["--models", "popularity", "--seeds", "0"], "seeds is 0; it must be 1 or more"),
        (["--models", "popularity", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["--models", "popularity", "--hold-out-users", "1.5"], "--hold-out-users is 1.5; it must lie between 0 and 1"),
        (["--models", "popularity", "--config", "none.yaml"], "config: there is no file none.yaml"),
        (["--models", "popularity", "--metrics", "recall@99"], "recall@99 needs 99 items, the catalogue has 40"),
        (["--models", "cllm4rec", "--config", "baselines.yaml"], "baselines.yaml"),
    ],
)
def test_bad_input_is_one_line(
    quality: Quality, in_process: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert quality(*words) == 2
    assert message in error_of(capsys)
    assert in_process == []


def test_folder_of_another_protocol(quality: Quality, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality("--models", "popularity") == 0
    capsys.readouterr()
    assert quality("--models", "popularity", "--max-users", "10") == 2
    assert "was measured under another protocol (then, now): {'max_users': (None, 10)}" in error_of(capsys)


def test_overwrite_spares_what_is_no_report(quality: Quality, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    assert quality("--models", "popularity", "--overwrite", output=tmp_path / "letters") == 2
    assert "is no report folder, so it is never replaced" in error_of(capsys)
    assert (tmp_path / "letters" / "a.txt").exists()


RECIPE = """
max_text_tokens: 12
batch_size: 32
learning_rate: 1e-2
pretrain: {backbone: gpt2, num_train_epochs: 1, warmup_epochs: 0, content_share: 0.1}
finetune: {num_train_epochs: 1}
"""


def test_ablation(
    in_process: list[str], data: RecommendationData, data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    """The recipe and two variants; the one without finetuning takes the recipe's pretraining, and a trained folder is read."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["--data", data_folder, "--config", tmp_path / "recipe.yaml", "--backbone", tiny_backbones["gpt2"], "--no-plots"]
    words += ["--variants", "LLM-PreRec,users=anonymous", "--metrics", "recall@5", "--resamples", 20, "--keep-models"]
    assert main(["ablation", *map(str, words), "--output", str(tmp_path / "report")]) == 0
    assert in_process == ["recipe-seed1", "LLM-PreRec-seed1", "users-anonymous-seed1"]
    runs = sorted(path.name.partition("-")[0] for path in (tmp_path / "report" / "runs").iterdir())
    assert runs == ["cllm4rec", "cllm4rec", "pretrain", "pretrain"]
    (table,) = read_tables(tmp_path / "report", 20)[1]
    assert table.references == {"recall@5": "recipe"} and len(table.measured) == 3
    text = (tmp_path / "report" / "report.md").read_text()
    assert "not run again: lambda_c=1, tune=frozen, rows=text." in text
    assert str(tiny_backbones["gpt2"].parent) not in text

    trained = next(path.parent for path in (tmp_path / "report" / "runs").glob("cllm4rec-*/config.json"))
    quality = ["quality", "--data", data_folder, "--models", f"popularity,mine={trained}", "--metrics", "recall@5", "--no-plots"]
    assert main([str(word) for word in [*quality, "--resamples", 20, "--output", tmp_path / "quality"]]) == 0
    rows = {row.model: row for row in read_tables(tmp_path / "quality", 20)[1][0].rows}
    values = evaluate(load_recommender(trained), data, "test", metrics=["recall@5"], n_resamples=0, progress=False).metrics
    assert rows["mine"].means["recall@5"] == pytest.approx(values["recall@5"])
    costs = rows["mine"].resources
    assert costs["train_seconds"] > 0 and costs["train_peak_bytes"] > 10**8 and costs["wall_seconds"] > 0

    shutil.copytree(trained, tmp_path / "second")
    record = json.loads((trained / "training.json").read_text())
    record["finetune"]["arguments"]["seed"] = 2
    (tmp_path / "second" / "training.json").write_text(json.dumps(record))
    both = f"mine={trained},mine={tmp_path / 'second'}"
    quality = ["quality", "--data", data_folder, "--models", both, "--metrics", "recall@5", "--no-plots", "--resamples", 20]
    assert main([str(word) for word in [*quality, "--output", tmp_path / "quality"]]) == 0
    row = next(row for row in read_tables(tmp_path / "quality", 20)[1][0].rows if row.model == "mine")
    assert row.seeds == [1, 2] and row.deviations["recall@5"] == 0
    record["finetune"]["arguments"]["learning_rate"] = 0.5
    (tmp_path / "second" / "training.json").write_text(json.dumps(record))
    quality[quality.index(both)] = f"mine={tmp_path / 'second'}"
    assert main([str(word) for word in [*quality, "--output", tmp_path / "quality"]]) == 0
    row = next(row for row in read_tables(tmp_path / "quality", 20)[1][0].rows if row.model == "mine")
    assert (row.seeds, row.left_out) == ([2], {1: "run with other settings"})


LCREC = """
lcrec:
  index: {method: rk-means, num_levels: 2, codebook_size: 8, encoder: ENCODER, fields: [title]}
  align:
    {num_train_epochs: 1, per_device_train_batch_size: 32, tasks: [seqrec, item2index=0.2],
     max_history: 4, max_text_tokens: 8, num_beams: 10, eval_users: 5}
"""


def test_ablation_of_lcrec_on_a_sample_of_users(
    in_process: list[str], data_folder: Path, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    """One index for all steps, one without meaning; on a sample of the users."""
    config, report = tmp_path / "recipe.yaml", tmp_path / "report"
    config.write_text(LCREC.replace("ENCODER", str(tiny_backbones["gpt2"])))
    words = ["--data", data_folder, "--config", config, "--backbone", tiny_backbones["gpt2"], "--no-plots", "--keep-models"]
    words += ["--train-users", 40, "--metrics", "recall@5", "--resamples", 20, "--output", report]
    assert main(["ablation", *map(str, words), "--variants", "SEQ,SEQ:index=random"]) == 0
    assert in_process == ["recipe-seed1", "SEQ-seed1", "SEQ-index-random-seed1"]
    kinds = sorted(path.name.partition("-")[0] for path in (report / "runs").iterdir())
    assert kinds == ["index"] * 2 + ["lcrec"] * 3
    setting, (table,) = read_tables(report, 20)
    assert setting.dataset == "small-world-40-people" and setting.same_as_recipe == ("+MUT",)
    assert {row.protocol.users for row in table.measured if row.protocol} == {40}
    assert "--train-users 40 --output reports/again --variants SEQ --seed 1`" in (report / "report.md").read_text()
    assert main(["ablation", *map(str, words), "--variants", "SEQ"]) == 0
    assert len(in_process) == 3


def test_examples_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("quality", "ablation", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"cllm4rec benchmark {command} --" in capsys.readouterr().out
