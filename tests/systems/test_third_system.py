"""A third system, registered from the tests folder, goes through the whole house without an edit to the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
import numpy as np, pandas as pd
from modeling_cllm4rec.commands.main import main
from modeling_cllm4rec.systems import SYSTEMS

folder, backbone = Path(sys.argv[1]), sys.argv[2]
data, run = str(folder / "data"), str(folder / "run")

def command(*words):
    try:
        code = main(list(map(str, words)))
    except SystemExit as ended:
        code = ended.code
    assert code == 0, (words, code)

assert "toy" in SYSTEMS
command("prepare", "--interactions", folder / "interactions.csv", "--items", folder / "items.csv", "--output", data)
command("toy-train", "--help")
command("toy-train", "--data", data, "--backbone", backbone, "--output", run, "--epochs", 2)
command("evaluate", "--model", run, "--data", data, "--json")
command("recommend", "--model", run, "--users", "u0", "--k", 3, "--json")
(folder / "bench.yaml").write_text(f"toy: {{train: {{epochs: 1, backbone: {backbone}}}}}")
command("benchmark", "quality", "--data", data, "--config", folder / "bench.yaml", "--models", "popularity,toy",
        "--metrics", "recall@5", "--output", folder / "report", "--seeds", 1, "--no-plots")

from transformers import AutoModel
from modeling_cllm4rec.core.saved_folder import flat_code
model = AutoModel.from_pretrained(run)
assert type(model).__name__ == "ToyForRecommendation" and list(flat_code(type(model))) == ["toy_system.py"]
model.save_pretrained(folder / "again")
again = AutoModel.from_pretrained(folder / "again")
assert model.recommend(users=["u0"], k=3).to_pylist() == again.recommend(users=["u0"], k=3).to_pylist()
card = (Path(run) / "README.md").read_text(encoding="utf-8")
assert "A toy recommender." in card and "cllm4rec toy-train" in card and "- toy" in card

from modeling_cllm4rec.app.answers import Question, ShownModels
shown = ShownModels.load([run])
answer = shown.answer(shown.shown[0], Question(("i1", "i2"), k=3))
assert len(answer.rows) == 3 and shown.shown[0].score_name(answer) == "similarity" and shown.shown[0].system == "Toy"

from modeling_cllm4rec.core.handler import answer as answer_requests, read_question
question = read_question(model, {"histories": [["i1", "i2"]], "k": 2})
served = answer_requests(model, [question], model.default_batch_size)
try:
    from modeling_cllm4rec.serving.application import make_service
    make_service(model)
except ImportError:
    pass
report = (folder / "report" / "report.md").read_text(encoding="utf-8")
reported = "Toy" in report and "mean of item rows" in report
print(json.dumps({"served": len(served[0]["results"][0]["items"]), "reported": reported}))
"""


@pytest.mark.slow
def test_a_third_system_needs_no_edit_of_the_library(tiny_backbones, synthetic_dataset, tmp_path):
    interactions = synthetic_dataset.interactions.to_pandas()[["user_id", "item_id"]].drop_duplicates()
    users = {name: f"u{number}" for number, name in enumerate(interactions["user_id"].unique())}
    items = {name: f"i{number}" for number, name in enumerate(interactions["item_id"].unique())}
    pairs = interactions.assign(
        user_id=interactions["user_id"].map(users), item_id=interactions["item_id"].map(items), timestamp=range(len(interactions))
    )
    pairs.to_csv(tmp_path / "interactions.csv", index=False)
    titles = "\n".join(f"{name},title of {name}" for name in items.values())
    (tmp_path / "items.csv").write_text(f"item_id,title\n{titles}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "CLLM4REC_SYSTEMS": "toy_system"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(tiny_backbones["gpt2"])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"served": 2, "reported": True}


def test_a_system_that_is_not_there(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CLLM4REC_SYSTEMS": "no_such_system"}
    done = subprocess.run(
        [sys.executable, "-c", "import modeling_cllm4rec"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "CLLM4REC_SYSTEMS names 'no_such_system', and there is no such module" in done.stderr


@pytest.mark.parametrize("name", ["core", "corpora", "training", "evaluation", "baselines", "hub", "serving", "app", "benchmark"])
def test_shared_rooms_name_no_system_of_models(name):
    """No shared room chooses by the class or the name of a system; see `systems.py`."""
    import re

    switch = re.compile(
        r"isinstance\([^)]*(LCRec|CLLM4Rec)|model_type ==|system == \"(cllm4rec|lcrec)|import .*(LCRecFor|CLLM4RecFor)"
    )
    found = []
    for file in (ROOT / "modeling_cllm4rec" / name).rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        found += [f"{file.name}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if switch.search(line)]
    assert found == []
