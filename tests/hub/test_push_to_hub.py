"""`push_to_hub` and back: the real client, over sockets, against a local stand-in of the Hub."""

import json

import pytest
import yaml
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard

from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import AUTO_MAP
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.core.saved_folder import flat_code
from modeling_cllm4rec.evaluation.protocol import Protocol
from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.hub.model_card import make_card
from modeling_cllm4rec.systems import SYSTEMS

CLLM4REC = SYSTEMS["cllm4rec"]

FLAT_FILES = tuple(flat_code(CLLM4RecForRecommendation))
REPO = "someone/some-repo"
PICTURE = b"\x89PNG\r\n\x1a\n and so on"
PUSH = """
from pathlib import Path
from transformers import AutoModel, AutoTokenizer
import modeling_cllm4rec
from modeling_cllm4rec.core.errors import InputError, RunError

folder, repo = arguments["folder"], arguments["repo"]
model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
results = {}
try:
    model.push_to_hub("someone/refused", token="wrong")
except RunError as error:
    results["refused"] = str(error)
results["model"] = model.push_to_hub(repo, commit_message="The model", include_histories=True)
results["tokenizer"] = tokenizer.push_to_hub(repo)
results["again"] = model.push_to_hub(repo, include_histories=True)
results["branch"] = model.push_to_hub(repo, revision="without-histories")
results["request"] = model.push_to_hub(repo, create_pr=True, commit_message="A proposal", max_shard_size="30KB")
results["tokenizer first"] = tokenizer.push_to_hub("tokenizer-first")
results["model second"] = model.push_to_hub("tokenizer-first")
model.push_to_hub("shards", max_shard_size="30KB")
results["both"] = model.push_to_hub("shards", tokenizer=tokenizer)
model.push_to_hub("open", private=False)
try:
    model.push_to_hub("open", include_histories=True)
except InputError as error:
    results["public"] = str(error)
results["published"] = model.push_to_hub("open", include_histories=True, private=False)
where = {"push_to_hub": True, "repo_id": "someone/pushed-while-saving"}
Path(arguments["saved"], "corpus").mkdir(parents=True)
Path(arguments["saved"], "corpus", "reviews.txt").write_text("words of users")
model.save_pretrained(arguments["saved"], **where, commit_message="Saved and pushed")
tokenizer.save_pretrained(arguments["saved"], **where)
model.card = None
results["without card"] = model.push_to_hub("someone/without-card")
print(json.dumps(results))
"""
PULL = """
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

repo = arguments["repo"]
def use(**where):
    model = AutoModel.from_pretrained(repo, trust_remote_code=True, **where)
    tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=True, **where)
    writer = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, **where)
    written = writer.generate(**tokenizer("<user_1> says of <item_3>:", return_tensors="pt"), max_new_tokens=5)
    rows = model.recommend(users=[1, 7], histories=[["5"], ["ä", "6"]], k=3).to_pylist()
    return model, [rows, written.tolist()]

model, first = use()
again = type(model).from_pretrained(repo)
_, from_cache = use(local_files_only=True)
branch, _ = use(revision="without-histories")
model.save_pretrained(arguments["saved"])
print(json.dumps({
    "first": first,
    "from_cache": from_cache,
    "module": type(model).__module__.split(".")[0],
    "stored": again.recommend(users=[1, 7], k=3).to_pylist(),
    "card": model.card,
    "histories": [model.users.has_histories, branch.users.has_histories],
}))
"""


@pytest.fixture(scope="module")
def card() -> str:
    protocol = Protocol("small-world", "random split", "test", "train", "train", items=6, users=2, excluded_users=0)
    report = EvaluationReport(protocol, {"recall@3": 0.25, "ndcg@3": 0.125}, {"recall@3": (0.1, 0.4)}, 1.0, 0, 100)
    return make_card("some-model", CLLM4REC, {}, {"statistics": {"users": 2}, "protocol": {"split": "random"}}, [report])


def metrics(text: str) -> dict[str, float]:
    return {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}


@pytest.mark.slow
def test_pushed_and_pulled_back(tiny_backbones, make_folder, card, run, tmp_path):
    folder = make_folder(tiny_backbones["gpt2"], tmp_path / "model")
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "training_curves.png").write_bytes(PICTURE)
    with HubStandIn() as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
        }
        pushed = run(PUSH, package=True, environment=environment, folder=str(folder), repo=REPO, saved=str(tmp_path / "saved"))
        check_pushed(hub, pushed, card)
        hub.requests.clear()
        environment["HF_HOME"] = str(tmp_path / "other-cache")
        pulled = run(PULL, environment=environment, repo=REPO, saved=str(tmp_path / "pulled"))
        assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
        own_files = [path for _, path in hub.requests if path.endswith((".parquet", "README.md"))]
        assert len(own_files) >= 3
        assert not [path for path in own_files if "/resolve/main/" in path]  # those of the weights' commit

    model = CLLM4RecForRecommendation.from_pretrained(folder)
    assert pulled["module"] == "transformers_modules"
    assert pulled["first"] == pulled["from_cache"]
    assert pulled["first"][0] == model.recommend(users=[1, 7], histories=[["5"], ["ä", "6"]], k=3).to_pylist()
    assert pulled["stored"] == model.recommend(users=[1, 7], k=3).to_pylist()
    assert metrics(pulled["card"]) == metrics(card)
    assert (tmp_path / "pulled" / "training_curves.png").read_bytes() == PICTURE
    assert pulled["histories"] == [True, False]
    # What came from the Hub and is saved again names its own files, not those on the Hub:
    assert json.loads((tmp_path / "pulled" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file for file in FLAT_FILES if (tmp_path / "pulled" / file).is_file()} == set(FLAT_FILES)


def check_pushed(hub: HubStandIn, pushed: dict[str, str], local: str) -> None:
    def named(repo: str) -> str:
        """Return the card, whose example loads the repository."""
        return local.replace('name = "some-model"', f'name = "{repo}"')

    assert "repo_id: nothing was pushed to someone/refused (" in pushed["refused"] and "401" in pushed["refused"]
    assert "someone/refused" not in hub.repositories
    repository, files = hub.repositories[REPO], hub.files(REPO)
    assert repository.private
    assert pushed["model"].startswith(f"{hub.url}/{REPO}/commit/")
    messages = list(repository.messages.values())
    assert messages[:3] == ["initial commit", "The model", "Upload tokenizer"]
    assert "A proposal" in messages
    expected = {"config.json", "generation_config.json", "model.safetensors", "catalogue.parquet", "users.parquet", "README.md"}
    assert files["training_curves.png"] == PICTURE
    expected |= {
        "training_curves.png",
        "requirements.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenization_cllm4rec.py",
        *FLAT_FILES,
    }
    assert expected | {".gitattributes"} == set(files)

    # The generated card, whatever the tokenizer's push does to it:
    text, card = files["README.md"].decode(), named(REPO)
    assert metrics(text) == {"recall@3": 0.25, "ndcg@3": 0.125}
    assert ModelCard(text).text.strip() == ModelCard(card).text.strip()
    assert yaml.safe_load(text.split("---")[1]) == yaml.safe_load(card.split("---")[1])
    second = hub.files("someone/tokenizer-first")
    assert second["README.md"].decode() == named("someone/tokenizer-first")
    assert {"model.safetensors", "tokenizer.json"} <= set(second)

    assert "/commit/" in pushed["branch"]
    without = hub.files(REPO, "without-histories")
    assert len(without["users.parquet"]) < len(files["users.parquet"])
    assert "model.safetensors.index.json" in hub.files(REPO, "refs/pr/1")
    assert "model.safetensors.index.json" not in files
    shards = hub.files("someone/shards")
    assert {name for name in shards if name.endswith((".safetensors", ".index.json"))} == {"model.safetensors"}
    assert "tokenizer.json" in shards and hub.repositories["someone/shards"].private
    assert "repo_id: someone/open is public, and the commit holds the histories of 2 users" in pushed["public"]
    assert not hub.repositories["someone/open"].private and len(hub.files("someone/open")["users.parquet"]) > len(
        without["users.parquet"]
    )
    saved = hub.files("someone/pushed-while-saving")
    assert saved["README.md"].decode() == named("someone/pushed-while-saving")
    assert {"tokenizer.json", "users.parquet"} <= set(saved) and not [name for name in saved if "corpus" in name]
    assert len(saved["users.parquet"]) == len(without["users.parquet"])
    assert "Saved and pushed" in hub.repositories["someone/pushed-while-saving"].messages.values()
    assert "README.md" not in hub.files("someone/without-card")
