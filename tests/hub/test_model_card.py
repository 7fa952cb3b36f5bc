"""The generated card: from records of what was run, readable by `huggingface_hub`."""

import dataclasses
import json
import re
from dataclasses import dataclass

import pytest
from huggingface_hub import ModelCard

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import BaselineResult, EvaluationReport
from modeling_cllm4rec.hub.model_card import RECORD_FILE, make_card, read_records, save_record, training_record, update_card
from modeling_cllm4rec.systems import SYSTEMS
from modeling_cllm4rec.training.progress import Progress

CLLM4REC = SYSTEMS["cllm4rec"]

INFO = {
    "statistics": {"users": 10, "items": 20, "interactions": {"train": 50, "test": 10}},
    "protocol": {"split": "random", "seed": 7},
}


@dataclass
class SomeArguments:
    lr: float = 0.001
    data: str = "data/mine"
    sides: tuple[str, ...] = ("content",)


def report(split: str = "test", history: str = "train", recall: float = 0.1234567) -> EvaluationReport:
    protocol = Protocol("mine: a 'world'", "random split, seed 7", split, history, history, items=20, users=10, excluded_users=1)
    return EvaluationReport(protocol, {"recall@20": recall, "ndcg@10": 0.5}, {"recall@20": (0.05, 0.2)}, 1.5, 0, 100)


@pytest.fixture
def record() -> dict:
    return training_record(SomeArguments(), Progress(epoch=2, step=30, best_epoch=1, seconds=12.34, history=[{"epoch": 0}]))


def test_the_record_says_what_the_training_took(record):
    assert record["seconds"] == 12.34 and record["peak_bytes"] > 10**7 and record["peak_device_bytes"] >= 0


def test_the_model_index_holds_every_metric_with_its_protocol():
    reports = [report(), report(history="train+validation", recall=0.2), report("validation")]
    card = ModelCard(make_card("my model", CLLM4REC, {}, INFO, reports))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("cllm4rec", "text-ranking")
    assert data.metrics == ["recall@20", "ndcg@10"]
    assert data.model_name == "my model"
    assert {"recommendation", "cllm4rec"} <= set(data.tags)
    found = {(result.dataset_name, result.dataset_split, result.metric_name): result.metric_value for result in data.eval_results}
    name = "mine: a 'world'"
    assert found == {
        (name, "test", "recall@20 (train histories)"): 0.12346,
        (name, "test", "ndcg@10 (train histories)"): 0.5,
        (name, "test", "recall@20 (train+validation histories)"): 0.2,
        (name, "test", "ndcg@10 (train+validation histories)"): 0.5,
        (name, "validation", "recall@20 (train histories)"): 0.12346,
        (name, "validation", "ndcg@10 (train histories)"): 0.5,
    }
    assert {result.task_type for result in data.eval_results} == {"recommendation"}


def test_unusual_conditions_are_in_the_text_only():
    few = report()
    few.protocol = dataclasses.replace(few.protocol, users=5, sample="a random sample of 10, seed 0")
    unmasked = report()
    unmasked.protocol = dataclasses.replace(unmasked.protocol, masked="none")
    card = ModelCard(make_card("mine", CLLM4REC, {}, INFO, [few, unmasked]))
    assert card.data.eval_results is None
    assert f"Protocol: {few.protocol}." in card.text and f"Protocol: {unmasked.protocol}." in card.text
    searched = report()
    searched.protocol = dataclasses.replace(searched.protocol, decoding="constrained search with 20 beams, template 0")
    names = {result.metric_name for result in ModelCard(make_card("mine", CLLM4REC, {}, INFO, [searched])).data.eval_results}
    assert "recall@20 (train histories, constrained search with 20 beams, template 0)" in names


def test_the_text_says_what_was_run(record):
    text = make_card("mine", CLLM4REC, {"pretrain": record, "finetune": record}, INFO, [report()])
    body = ModelCard(text).text
    assert "- users: 10" in body
    assert '- interactions: {"train": 50, "test": 10}' in body
    assert "- seed: 7" in body
    assert "| recall@20 | 0.1235 | 0.0500 to 0.2000 |" in body
    assert f"Protocol: {report().protocol}." in body
    assert body.index("## Training: pretrain") < body.index("## Training: finetune")
    assert "30 optimizer steps, 12 s on " in body
    assert "lr: 0.001" in body
    for library in ("torch", "transformers", "datasets", "cllm4rec"):
        assert f"{library} {record['versions'][library]}" in body
    assert "trust_remote_code=True" in body
    assert "include_histories=False" in body


def test_a_model_that_was_not_evaluated():
    card = ModelCard(make_card("mine", CLLM4REC, {}, INFO, []))
    assert card.data.eval_results is None
    assert "Not evaluated yet: run `cllm4rec evaluate`." in card.text


def test_records_of_stages_are_kept_together(record, tmp_path):
    save_record(tmp_path, "pretrain", record)
    save_record(tmp_path, "finetune", {**record, "steps": 31})
    save_record(tmp_path, "finetune", {**record, "steps": 32})  # a later run counts
    records = json.loads((tmp_path / RECORD_FILE).read_text())
    assert [(stage, values["steps"]) for stage, values in records.items()] == [("pretrain", 30), ("finetune", 32)]
    assert records["pretrain"]["arguments"] == {"lr": 0.001, "data": "data/mine", "sides": ["content"]}
    assert records["pretrain"]["best_epoch"] == 1


def test_the_card_of_a_folder(data: RecommendationData, record, tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    save_record(folder, "pretrain", record)
    report().save(folder / "evaluation-test-given-train.json")
    report("validation", recall=0.75).save(folder / "evaluation-validation-given-train.json")
    text = update_card(folder, data)
    assert (folder / "README.md").read_text(encoding="utf-8") == text
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "my-run"
    assert sorted(result.metric_value for result in card.data.eval_results) == [0.12346, 0.5, 0.5, 0.75]
    assert "## Training: pretrain" in card.text
    for key, value in data.info["statistics"].items():
        assert f"- {key.replace('_', ' ')}: " in card.text, value
    assert update_card(folder, data) == text  # nothing in it depends on when it was written
    assert (folder / "data_card.md").read_text() == (data.folder / "README.md").read_text()
    assert "[data_card.md](data_card.md)" in card.text


def test_intervals_are_in_the_text_and_in_the_model_index():
    card = ModelCard(make_card("mine", CLLM4REC, {}, INFO, [report()]))
    arguments = {result.metric_type: result.metric_args for result in card.data.eval_results}
    assert arguments == {"recall@20": {"interval_95": [0.05, 0.2], "bootstrap_resamples": 100}, "ndcg@10": None}
    assert "| recall@20 | 0.1235 | 0.0500 to 0.2000 |" in card.text and "| ndcg@10 | 0.5000 | - |" in card.text


def test_the_card_says_how_to_do_it_again(record):
    measured = report()
    measured.command = "cllm4rec evaluate --model runs/mine --data data/mine"
    records = {"pretrain": {**record, "processes": 2}, "finetune": {**record, "changed": {"lr": 0.5}}}
    text = make_card("mine", CLLM4REC, records, INFO, [measured, report("validation")])
    commands = text.split("## Reproduce")[1].split("```")[1].splitlines()[1:]
    assert commands == [
        "accelerate launch --num_processes 2 -m modeling_cllm4rec pretrain",  # all else at its defaults
        "cllm4rec finetune --lr 0.5",
        "cllm4rec evaluate --model runs/mine --data data/mine",
    ]
    earlier = {name: value for name, value in record.items() if name not in ("changed", "processes")}
    assert "cllm4rec pretrain --lr 0.001 --data data/mine --sides content\n" in make_card(
        "mine", CLLM4REC, {"pretrain": earlier}, INFO
    )
    assert "## Reproduce" not in make_card("mine", CLLM4REC, {}, INFO)


def test_licences_use_and_sources(record):
    text = make_card("mine", CLLM4REC, {"pretrain": record}, INFO)
    assert "- of the data: not stated" in text and "- of the backbone: not stated" in text
    assert "base_model" not in text
    assert "## Intended use" in text and "for its known users by their ids" in text
    records = {"align": {**record, "backbone": {"name": "some/model", "local": False, "license": "mit"}}}
    source = {"table": "items", "file": "items.csv", "sha256": "ab12"}
    card = ModelCard(make_card("mine", SYSTEMS["lcrec"], records, {**INFO, "license": "cc-by-4.0", "sources": [source]}))
    assert "- of the data: cc-by-4.0" in card.text and "- of the backbone (some/model): mit" in card.text
    assert "- source of items: items.csv, SHA-256 ab12" in card.text
    assert "by words that say what is looked for" in card.text
    assert card.data.base_model == "some/model"
    assert (card.data.license, card.data.license_name) == ("other", "backbone mit, data cc-by-4.0")
    assert ModelCard(make_card("mine", CLLM4REC, records, INFO, [report()])).data.license == "mit"
    here = {"pretrain": {**record, "backbone": {"name": "/a/folder", "local": True, "license": None}}}
    assert ModelCard(make_card("mine", CLLM4REC, here, INFO)).data.base_model is None


def test_the_header_names_data_languages_and_the_base_model(record):
    trained = {**record, "backbone": {"name": "some/model", "local": False, "license": "mit", "language": ["en"]}}
    data = ModelCard(make_card("mine", CLLM4REC, {"pretrain": trained}, INFO)).data
    assert (data.base_model, data.base_model_relation, data.language, data.datasets) == ("some/model", "finetune", ["en"], None)
    on_hub = {**trained, "arguments": {"data": "hf:you/mine@v1", "backbone_weights": "random"}}
    text = make_card("mine", CLLM4REC, {"pretrain": on_hub}, {**INFO, "language": ["de"]})
    data = ModelCard(text).data
    assert (data.base_model, data.language, data.datasets) == (None, ["de"], ["you/mine"])  # no weight is of the base model
    assert "- data folder: [you/mine](https://huggingface.co/datasets/you/mine)" in text
    named = make_card("mine", CLLM4REC, {"pretrain": trained}, INFO, repository="you/other")
    assert ModelCard(named).data.datasets == ["you/other"]


def test_baselines_of_the_same_run_stand_beside_the_model():
    measured = report()
    others = {"recall@20": (-0.1, -0.2, -0.05), "ndcg@10": (0.1, -0.1, 0.2)}
    measured.baselines = {"popularity": BaselineResult({"recall@20": 0.2234567, "ndcg@10": 0.4}, {}, others)}
    text = make_card("mine", CLLM4REC, {}, INFO, [measured])
    assert "| metric | value | 95% interval | popularity |" in text
    assert "| recall@20 | 0.1235 | 0.0500 to 0.2000 | 0.2235 |" in text
    assert "This model is below popularity on recall@20; not significantly different from popularity on ndcg@10." in text
    found = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert found == {"recall@20": 0.12346, "ndcg@10": 0.5}  # those of the model


def test_long_dumps_are_folded_and_the_paper_is_cited(record):
    for system in SYSTEMS.values():
        text = make_card("mine", system, {"pretrain": record}, INFO)
        folded = text.split("<summary>Arguments</summary>")[1].split("</details>")[0]
        assert "lr: 0.001" in folded
        assert f"```bibtex\n{system.citation}\n```" in text and system.citation.startswith("@inproceedings{")
    without = dataclasses.replace(CLLM4REC, citation="")
    assert "## Citation" not in make_card("mine", without, {}, INFO)


def test_curves_are_in_the_card_if_they_were_drawn(data: RecommendationData, record, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "cllm4rec"}', encoding="utf-8")
    assert "training_curves.png" not in update_card(tmp_path, data)
    (tmp_path / "training_curves.png").write_bytes(b"a picture")
    assert "![Losses and validation metrics by epoch](training_curves.png)" in update_card(tmp_path, data)


def test_a_record_follows_those_of_what_it_started_from(record, tmp_path):
    start, folder = tmp_path / "start", tmp_path / "now"
    start.mkdir()
    folder.mkdir()
    save_record(folder, "finetune", {**record, "steps": 1})
    save_record(folder, "finetune", {**record, "steps": 2}, earlier=start)  # nothing is known of the start
    assert list(read_records(folder)) == ["finetune"]
    save_record(start, "pretrain", record)
    save_record(folder, "finetune", {**record, "steps": 3}, earlier=start)
    assert [(stage, one["steps"]) for stage, one in read_records(folder).items()] == [("pretrain", 30), ("finetune", 3)]
    assert read_records(tmp_path) == {}


def test_what_a_card_quotes_is_no_markup(record):
    evil = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y][z]\n# heading\n```\n<script>"
    info = {"statistics": {evil: evil}, "protocol": {"line": evil}, "license": evil}
    info["sources"] = [{"table": evil, "file": evil, "sha256": evil}]
    item = {"item": evil, "title": evil + " | a cell"}
    examples = {"histories": [{"history": [item], "recommended": [item]}] * 2, "query": evil}
    hostile = {**record, "machine": evil, "arguments": {"output": evil}, "changed": {"output": evil}, "notes": [evil]}
    text = make_card("mine " + evil, CLLM4REC, {"pretrain": hostile}, {**INFO, **info}, examples=examples)
    text = text.split("\n---\n", 1)[1]
    fence, outside = None, []
    for line in text.split("\n"):
        mark = re.match("`{3,}", line)
        if fence is None and mark:
            fence = mark[0]
        elif fence is not None and line.startswith(fence):
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    words = "\n".join(outside)
    assert not re.search(r"<img|<script|\]\(javascript|\]\[z|^# heading|^```$", words, re.MULTILINE)
    assert words.count("&lt;img") >= 8


def test_a_damaged_record_is_named(data: RecommendationData, tmp_path):
    (tmp_path / "training.json").write_text('{"pretrain": {"arguments"')
    with pytest.raises(InputError, match="training.json cannot be read .*; delete it: the model stays as it is"):
        read_records(tmp_path)
    (tmp_path / "training.json").write_text("[]")
    with pytest.raises(InputError, match="training.json cannot be read .it is no JSON object.; delete it"):
        read_records(tmp_path)
    (tmp_path / "training.json").write_text('{"pretrain": 7}')
    with pytest.raises(InputError, match="training.json: 'pretrain' is no record of a stage with its arguments; delete the file"):
        read_records(tmp_path)
    (tmp_path / "training.json").write_text('{"pretrain": {"arguments": {}, "steps": 3, "seconds": "long"}}')
    with pytest.raises(InputError, match="training.json: seconds of 'pretrain' is 'long'; it must be a number; delete the file"):
        update_card(tmp_path, data)
