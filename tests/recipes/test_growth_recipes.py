"""Commands for a catalogue that changes: both systems, from the shell's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cold_items import HeldOutItems, hold_out_items
from recipe_modules import main_of
from transformers import AutoTokenizer

from modeling_cllm4rec.cllm4rec.arguments import PretrainArguments
from modeling_cllm4rec.cllm4rec.pretraining import new_model
from modeling_cllm4rec.cllm4rec.update import UpdateArguments, update
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_embeddings import embed_items
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.hub.model_card import update_card
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def withheld(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> HeldOutItems:
    output = tmp_path_factory.mktemp("withheld") / "rest"
    return hold_out_items(RecommendationData.load(data_folder), output, share=0.2, tuning_share=0.1)


@pytest.fixture(scope="module")
def cllm4rec(withheld: HeldOutItems, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained model of the data without the withheld items."""
    folder = tmp_path_factory.mktemp("cllm4rec")
    values: dict[str, Any] = {"data": str(withheld.data.folder), "backbone": str(tiny_backbones["gpt2"])}
    for part in new_model(withheld.data, PretrainArguments(**values, output=str(folder))):
        part.save_pretrained(folder)
    (folder / "README.md").write_text("# the card\n")
    record = {"arguments": {}, "seconds": 1.0, "steps": 7, "versions": {}, "machine": "m"}
    (folder / "training.json").write_text(json.dumps({"finetune": record}))
    return folder


@pytest.fixture(scope="module")
def lcrec(withheld: HeldOutItems, tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained LC-Rec over the same data, two levels of eight codes."""
    folder, backbone, data = tmp_path_factory.mktemp("lcrec"), tiny_backbones["gpt2"], withheld.data
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    numbers = np.random.default_rng(0).permutation(64)[: data.num_items]
    train = data.histories("train")
    model = LCRecForRecommendation.from_backbone(
        backbone,
        semantic_ids=SemanticIds(np.stack([numbers // 8, numbers % 8], axis=1).astype(np.int32), 8),
        first_index_token=add_semantic_id_tokens(tokenizer, 2, 8),
        catalogue=Catalogue(data.items),
        users=KnownUsers(data.users["user_id"], train.indptr, train.items),
        indexer=RQVAEModel(RQVAEConfig(input_dim=32, hidden_dims=(8,), latent_dim=4, num_levels=2, codebook_size=8)),
        recommendation_prompts=[[[1, 2], "items"]],
        separator=[3],
        item_encoder={"encoder": "gpt2", "fields": ["title"], "pooling": "separate", "max_text_tokens": 20},
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def new_items(withheld: HeldOutItems, tmp_path: Path) -> Path:
    pq.write_table(withheld.part("report"), tmp_path / "new.parquet")
    return tmp_path / "new.parquet"


def test_add_items_to_cllm4rec(
    cllm4rec: Path, new_items: Path, withheld: HeldOutItems, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grown"
    assert main_of("add_items")("--model", cllm4rec, "--items", new_items, "--output", output, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "added": 8, "items": 36}
    old, grown = load_recommender(cllm4rec), load_recommender(output)
    assert (old.num_items, grown.num_items) == (28, 36)
    assert torch.equal(grown.item_collaborative.weight[:28], old.item_collaborative.weight)
    assert len(CLLM4RecTokenizer.from_pretrained(output)) == grown.config.total_tokens
    first = withheld.part("report")["item_id"][0].as_py()
    assert grown.recommend(histories=[[first]], k=35).table.num_rows == 35
    assert "8 items were added after training, by their texts alone" in (output / "README.md").read_text()
    assert "8 items were added after this training" in update_card(output, withheld.data)  # a later evaluation does not drop it


def test_add_items_that_fails_leaves_nothing_and_can_be_repeated(
    cllm4rec: Path, new_items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    flags = ("--model", cllm4rec, "--items", new_items, "--output", tmp_path / "grown")
    with monkeypatch.context() as patch:
        patch.setattr(CLLM4RecTokenizer, "save_pretrained", killed)
        assert main_of("add_items")(*flags) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]
    assert main_of("add_items")(*flags) == 0


def test_add_items_to_lcrec(
    lcrec: Path, new_items: Path, withheld: HeldOutItems, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "grown"
    flags = ("--model", lcrec, "--items", new_items, "--output", output, "--encoder", tiny_backbones["gpt2"])
    assert main_of("add_items")(*flags) == 0
    grown, expected = load_recommender(output), load_recommender(lcrec)
    vectors = embed_items(withheld.part("report"), encoder=str(tiny_backbones["gpt2"]), fields=["title"], max_text_tokens=20)
    expected.add_items(withheld.part("report"), vectors)
    assert np.array_equal(grown.semantic_ids.codes, expected.semantic_ids.codes) and grown.num_items == 36


def test_split_and_measure_both_systems(
    data_folder: Path,
    cllm4rec: Path,
    lcrec: Path,
    withheld: HeldOutItems,
    tiny_backbones: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = main_of("experiments/new_items")
    shares = ("--share", 0.2, "--tuning-share", 0.1)
    assert main("split", "--data", data_folder, "--output", tmp_path / "rest", *shares) == 0
    assert "28 items and " in capsys.readouterr().out
    assert HeldOutItems.load(tmp_path / "rest").items.equals(withheld.items)
    encoders = ("--encoder", tiny_backbones["gpt2"], "--baseline-encoder", tiny_backbones["gpt2"], "--baseline-text-tokens", 40)
    flags = ("--data", tmp_path / "rest", "--model", cllm4rec, lcrec, "--k", 4, "--output", tmp_path / "out.json", *encoders)
    assert main("measure", *flags) == 0
    table = capsys.readouterr().out
    assert "| popularity |" in table and f"| CLLM4Rec ({cllm4rec.name}) |" in table and f"| LC-Rec ({lcrec.name}) |" in table
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["popularity"]["recall"]["new among all"] == 0
    assert len({result["users"] for result in results.values()}) == 1
    assert all(0 <= value <= 1 for result in results.values() for value in result["recall"].values())


def test_update_is_that_of_the_model(cllm4rec: Path, lcrec: Path, data_folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "lcrec.yaml").write_text(f"update:\n  start: {lcrec}\n")
    (tmp_path / "cllm4rec.yaml").write_text(f"finetune:\n  start: {cllm4rec}\n")
    assert main_of("update")("--help") == 0
    both = capsys.readouterr().out
    assert " --replay " in both and " --start_items " in both and both.count("example:") == 2
    for words, system in (
        (("--start", cllm4rec), "CLLM4Rec"),
        (("--start", lcrec), "LC-Rec"),
        ((f"--start={lcrec}",), "LC-Rec"),
        (("--config", tmp_path / "lcrec.yaml"), "LC-Rec"),
        (("--config", tmp_path / "cllm4rec.yaml"), "CLLM4Rec"),
    ):
        with pytest.raises(SystemExit):
            main_of("update")(*words, "--help")
        assert (" --replay " in capsys.readouterr().out) == (system == "LC-Rec"), words
    flags = ("--start", lcrec, "--data", data_folder, "--output", tmp_path / "now")
    assert main_of("update")(*flags) == 2
    assert "was aligned with other templates than the packaged ones" in capsys.readouterr().err
    arguments = UpdateArguments(start=str(lcrec), data=str(data_folder), output=str(tmp_path / "now"))
    with pytest.raises(ValueError, match="is no CLLM4Rec model; `cllm4rec update` continues a model of another system"):
        update(arguments)


def test_one_line_for_bad_input(
    cllm4rec: Path, new_items: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text("id,title\n1,lamp\n")
    known = tmp_path / "known.parquet"
    pq.write_table(load_recommender(cllm4rec).catalogue.table.slice(0, 1), known)
    new = ("--model", cllm4rec, "--output", tmp_path / "out")
    cases = [
        ("add_items", (*new, "--items", bare), "item_id"),
        ("add_items", (*new, "--items", known), "are known already"),
        ("add_items", (*new, "--items", tmp_path / "none.parquet"), "none.parquet"),
        (
            "add_items",
            (*new, "--items", new_items, "--prediction-scale", "2"),
            "--prediction-scale is 2.0; it must lie between 0 and 1",
        ),
        ("add_items", (*new, "--items", new_items, "--passes", "-1"), "passes is -1; it must be 0 or more"),
        ("add_items", ("--model", cllm4rec, "--items", new_items, "--output", cllm4rec), "exists and is not empty"),
        ("experiments/new_items", ("measure", "--data", data_folder), "no items were withheld from it"),
        ("experiments/new_items", ("split", "--data", data_folder, "--output", tmp_path / "out", "--share", "2"), "share is 2.0"),
        ("update", ("--data", data_folder, "--output", tmp_path / "out"), "start is not set"),
    ]
    for name, flags, message in cases:
        assert main_of(name)(*flags) == 2, name
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_integer_ids_of_a_csv_file(cllm4rec: Path, tmp_path: Path) -> None:
    model, tokenizer = load_recommender(cllm4rec), CLLM4RecTokenizer.from_pretrained(cllm4rec)
    model.catalogue = Catalogue(model.catalogue.table.set_column(0, "item_id", pa.array(range(28))))
    model.config.catalogue_fingerprint = model.catalogue.ids.fingerprint
    model.save_pretrained(tmp_path / "numbered")
    tokenizer.save_pretrained(tmp_path / "numbered")
    (tmp_path / "new.csv").write_text("item_id,title\n1001,red lamp\n")
    flags = ("--model", tmp_path / "numbered", "--items", tmp_path / "new.csv", "--output", tmp_path / "out", "--passes", "0")
    assert main_of("add_items")(*flags) == 0
    assert load_recommender(tmp_path / "out").catalogue.ids.indices_of([1001]).tolist() == [28]
