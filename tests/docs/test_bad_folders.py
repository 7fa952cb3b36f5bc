"""The table of bad folders in docs/security.md has the messages that loading gives; no folder runs code or fills memory."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lcrec_models import WIDTH, new_lcrec
from safetensors import safe_open
from safetensors.numpy import save_file as numpy_file
from safetensors.torch import load_file, save_file

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation
from modeling_cllm4rec.cllm4rec.prompts import Prompts, recommendation_segments
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers
from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.linear_parts import LinearPart, LinearParts
from modeling_cllm4rec.hub.loading import check_folder, load_recommender, load_tokenizer
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CATALOGUE, USERS, LINEAR = "catalogue.parquet", "users.parquet", "linear_parts.safetensors"
HEAD = "item_head.rows.weight"

Change = Callable[[Path], Any]


class Code:
    """Leave a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("open('unpickled', 'w').close()",)


def write(name: str, content: str | bytes) -> Change:
    """Replace a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def cut(name: str, share: float = 0.5) -> Change:
    """Keep the first part of a file."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def fields(inside: str | None = None, file: str = CONFIG, **values: Any) -> Change:
    """Change fields of the configuration, or of the one inside; None removes a field."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        part = content if inside is None else content[inside]
        for name, value in values.items():
            part.pop(name) if value is None else part.update({name: value})
        (folder / file).write_text(json.dumps(content))

    return change


def column(file: str, name: str, make: Callable[[pa.Table], Any] | None) -> Change:
    """Replace a column of a table by what is made of the table; None removes it."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / file)
        made = None if make is None else make(table)
        if name in table.column_names:
            table = table.drop_columns([name])
        pq.write_table(table if made is None else table.append_column(name, pa.array(made)), folder / file)

    return change


def rows(file: str, make: Callable[[pa.Table], pa.Table]) -> Change:
    """Replace a table."""
    return lambda folder: pq.write_table(make(pq.read_table(folder / file)), folder / file)


def weights(make: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Change:
    """Change the weights in place."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        make(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return change


def number(name: str, value: float, file: str = WEIGHTS) -> Change:
    """Replace the first number of a weight."""
    return weights(lambda tensors: tensors[name].view(-1)[:1].fill_(value), file)


def linear(about: Callable[[dict[str, Any]], Any] | None = None, arrays: Callable[[dict[str, Any]], Any] | None = None) -> Change:
    """Change what a hybrid's file says of its linear model, or its arrays, in place."""

    def change(folder: Path) -> None:
        with safe_open(folder / LINEAR, "np") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name).copy() for name in file.keys()}
        parts = json.loads(metadata["parts"])
        if about is not None:
            about(parts[0])
        if arrays is not None:
            arrays(tensors)
        numpy_file(tensors, folder / LINEAR, {**metadata, "parts": json.dumps(parts)})

    return change


def other_items(folder: Path) -> None:
    """Say that a hybrid's linear models were fitted on another catalogue."""
    LinearParts(LinearParts.load(folder / LINEAR).parts, "0" * 64).save(folder)


def drop_token(folder: Path) -> None:
    """Remove the token of code 3 of the first level."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<a_3>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {
        name: [word for word in value if word != "<a_3>"] if isinstance(value, list) else value
        for name, value in settings.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def as_pickle(name: str, folder_inside: str = "") -> Change:
    """Put a pickle with code in place of the weights."""

    def change(folder: Path) -> None:
        (folder / folder_inside / WEIGHTS).unlink()
        (folder / folder_inside / name).write_bytes(pickle.dumps(Code()))

    return change


def shards(weight_map: Any) -> Change:
    """Put an index of shards in place of the weights."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return change


def reverse_codes(table: pa.Table) -> list[list[int]]:
    return table["codes"].to_pylist()[::-1]


def expanding(items: int, characters: int) -> pa.Table:
    """Return a table that takes few bytes as a dictionary, and items x characters when it is read."""
    title = pa.DictionaryArray.from_arrays(pa.array(np.zeros(items, np.int32)), ["x" * characters])
    return pa.table({"item_id": range(items), "title": title})


PROMPTS = "recommendation_prompts"
CLLM4REC: dict[str, Change] = {
    "no `config.json`": lambda folder: (folder / CONFIG).unlink(),
    "`config.json` cut off": cut(CONFIG),
    "`config.json` that is a list": write(CONFIG, "[]"),
    "`config.json` nested 100,000 deep": write(CONFIG, '{"a":' * 100_000),
    "`config.json` of 65 MB": lambda folder: (folder / CONFIG).write_bytes(b" " * (65 << 20)),
    "`model_type` of no model": fields(model_type="none"),
    "no `model_type`": fields(model_type=None),
    '`num_items: "forty"`': fields(num_items="forty"),
    "`num_items: 40.5`": fields(num_items=40.5),
    "`num_items: -1`": fields(num_items=-1),
    "`num_items: 10^12`": fields(num_items=10**12),
    "`num_items: 10^9`": fields(num_items=10**9),
    "one item more in `num_items`": fields(num_items=7),
    "`num_users: true`": fields(num_users=True),
    "`id_offset: 2^40`": fields(id_offset=2**40),
    "`id_offset` among the words": fields(id_offset=3),
    '`initializer_range: "wide"`': fields(initializer_range="wide"),
    '`max_history_tokens: "all"`': fields(max_history_tokens="all"),
    "prompts that are a list": fields(**{PROMPTS: [[1]]}),
    "prompts with the token 10^9": fields(PROMPTS, known=[[10**9], "items"]),
    "prompts with an unknown word": fields(PROMPTS, known=[[1], "buyer"]),
    "a prompt of 1,000,000 tokens": fields(PROMPTS, known=[[1] * 1_000_000, "user", "items"]),
    "a prompt without a place for the history": fields(PROMPTS, anonymous=[[1]]),
    "`catalogue_fingerprint: 7`": fields(catalogue_fingerprint=7),
    "`text_config` that is a text": fields(text_config="gpt2"),
    "`text_config` without `model_type`": fields("text_config", model_type=None),
    "`text_config` of an unknown architecture": fields("text_config", model_type="none"),
    '`vocab_size: "many"`': fields("text_config", vocab_size="many"),
    "`vocab_size: 0`": fields("text_config", vocab_size=0),
    "`n_layer: 10^9`": fields("text_config", n_layer=10**9),
    "three heads for a width of 32": fields("text_config", n_head=3),
    "an unknown activation": fields("text_config", activation_function="none"),
    "`n_embd: 10^8`": fields("text_config", n_embd=10**8),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights in `pytorch_model.bin`": as_pickle("pytorch_model.bin"),
    "weights in `model.ckpt`": as_pickle("model.ckpt"),
    "a pickle with the name of safetensors": lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps(Code())),
    "empty weights": write(WEIGHTS, b""),
    "weights cut off": cut(WEIGHTS),
    "weights with a header of 2^60 bytes": write(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"),
    "weights with a damaged header": write(WEIGHTS, (2).to_bytes(8, "little") + b"}{"),
    "weights of another shape": weights(lambda tensors: tensors.update({"item_content.weight": torch.zeros(5, 32)})),
    "a weight that is missing": weights(lambda tensors: tensors.pop("item_collaborative.weight")),
    "shards in another folder": shards({"item_content.weight": "../other/model.safetensors"}),
    "shards that are pickles": shards({"item_content.weight": "pytorch_model-00001-of-00001.bin"}),
    "a shard that is missing": shards({"item_content.weight": "model-00001-of-00001.safetensors"}),
    "an index of shards without names": shards([]),
    "an index of shards cut off": lambda folder: (shards({})(folder), cut(INDEX)(folder)),
    "catalogue cut off": cut(CATALOGUE),
    "catalogue that is no Parquet": write(CATALOGUE, "item_id\n1\n"),
    "catalogue with fewer items": rows(CATALOGUE, lambda table: table.slice(0, 3)),
    "catalogue of 60,000 long titles in 100 kB": rows(CATALOGUE, lambda _: expanding(60_000, 100_000)),
    "catalogue without `item_id`": column(CATALOGUE, "item_id", None),
    "items with fractions as ids": column(CATALOGUE, "item_id", lambda table: np.arange(6) / 2),
    "an item without id": column(CATALOGUE, "item_id", lambda table: [None, *"bcdef"]),
    "an item id twice": column(CATALOGUE, "item_id", lambda table: list("aabcde")),
    "items in another order": rows(CATALOGUE, lambda table: table.take(pa.array([1, 0, 2, 3, 4, 5]))),
    "titles that are numbers": column(CATALOGUE, "title", lambda table: range(6)),
    "users cut off": cut(USERS),
    "users of another number": rows(USERS, lambda table: table.slice(0, 1)),
    "users without `user_id`": column(USERS, "user_id", None),
    "users with fractions as ids": column(USERS, "user_id", lambda table: [0.5, 1.5]),
    "a user id twice": column(USERS, "user_id", lambda table: [7, 7]),
    "histories of texts": column(USERS, "history", lambda table: [["a"], ["b"]]),
    "a history that is null": column(USERS, "history", lambda table: [[1], None]),
    "a history with a null": column(USERS, "history", lambda table: [[1], [None]]),
    "a history with item -1": column(USERS, "history", lambda table: [[1], [-1]]),
    "a history with an item beyond the catalogue": column(USERS, "history", lambda table: [[1], [6]]),
    "a history with an item of 2^40": column(USERS, "history", lambda table: [[1], [2**40]]),
    "a card that is no UTF-8": write("README.md", b"\xff\xfe"),
    "generation settings cut off": cut("generation_config.json"),
    "generation settings that are a list": write("generation_config.json", "[]"),
    "a tokenizer that is damaged": write("tokenizer.json", '{"version": "1.0", "model": 7}'),
    "tokenizer settings cut off": cut("tokenizer_config.json"),
}
LCREC: dict[str, Change] = {
    "codes of another index of the same items": column(CATALOGUE, "codes", reverse_codes),
    "codes that two items share": column(CATALOGUE, "codes", lambda table: [[1, 2]] * 12),
    "codes beyond the codebook": column(CATALOGUE, "codes", lambda table: [[number, 9] for number in range(12)]),
    "negative codes": column(CATALOGUE, "codes", lambda table: [[-1, number] for number in range(12)]),
    "codes of three levels": column(CATALOGUE, "codes", lambda table: [[number // 5, number % 5, 0] for number in range(12)]),
    "codes that are texts": column(CATALOGUE, "codes", lambda table: [["a"]] * 12),
    "a catalogue without codes": column(CATALOGUE, "codes", None),
    "`first_index_token: 0`": fields(first_index_token=0),
    "`first_index_token` beyond the vocabulary": fields(first_index_token=10**6),
    '`first_index_token: "last"`': fields(first_index_token="last"),
    "`num_levels: 0`": fields(num_levels=0),
    "`num_levels: 27`": fields(num_levels=27),
    "`codebook_size: 10^9`": fields(codebook_size=10**9),
    "`search_beams: 10^9`": fields(search_beams=10**9),
    "`max_history: 0`": fields(max_history=0),
    '`separator: ","`': fields(separator=","),
    "a template with a token beyond the vocabulary": fields(**{PROMPTS: [[[10**6], "items"]]}),
    "a template of 1,000,000 tokens": fields(**{PROMPTS: [[[1] * 1_000_000, "items"]]}),
    "templates that are a number": fields(**{PROMPTS: 7}),
    "`query_prompts` without histories": fields("query_prompts", history=None),
    "`item_encoder` that is a list": fields(item_encoder=[1]),
    "an indexer with weights cut off": cut(f"rqvae/{WEIGHTS}"),
    "an indexer that is a pickle": as_pickle("pytorch_model.bin", "rqvae"),
    "an indexer without weights": lambda folder: (folder / "rqvae" / WEIGHTS).unlink(),
    "an indexer with settings cut off": cut(f"rqvae/{CONFIG}"),
    "an indexer with another codebook": fields(file=f"rqvae/{CONFIG}", codebook_size=6),
    "an indexer of a width of 10^9": fields(file=f"rqvae/{CONFIG}", hidden_dims=[10**9]),
    'an indexer with `hidden_dims: "wide"`': fields(file=f"rqvae/{CONFIG}", hidden_dims="wide"),
}
HYBRID: dict[str, Change] = {  # an LC-Rec with an item head and a linear model
    "a hybrid without its linear models": lambda folder: (folder / LINEAR).unlink(),
    "linear models cut off": cut(LINEAR),
    "linear models of fewer items": linear(arrays=lambda one: one.update({"0.indptr": one["0.indptr"][:-3]})),
    "linear models of other items": other_items,
    "linear models with NaN": linear(arrays=lambda one: one["0.values"][:1].fill(np.nan)),
    "a linear model with the weight NaN": linear(lambda part: part.update(weight=float("nan"))),
    "a linear model without weight": linear(lambda part: part.pop("weight")),
    "a linear model with `max_history: 0`": linear(lambda part: part.update(max_history=0)),
    "a linear model of a kind of tomorrow": linear(lambda part: part.update(kind="deep")),
    "`linear_parts: 7`": fields(linear_parts=7),
    "an item head of fewer items": weights(lambda one: one.update({HEAD: one[HEAD][:-3].clone()})),
    "an item head with NaN": number(HEAD, float("nan")),
    "an item head without its projection": weights(lambda one: one.pop("item_head.projection.weight")),
    "text vectors that are infinite": number("item_head.text_vectors", float("inf")),
    "a language model with NaN": number("backbone.transformer.h.0.attn.c_attn.weight", float("nan")),
    "`item_head: false` with `item_inputs`": fields(item_head=False, scoring="beam"),
    "`item_head_text_size` of another model": fields(item_head_text_size=5),
    "`scoring: 5`": fields(scoring=5),
    '`search_beams: "20"`': fields(search_beams="20"),
    '`index_history: "2"`': fields(index_history="2"),
    "`dtype: 7`": fields(dtype=7),
    "no templates": fields(**{PROMPTS: []}),
    "a template without a place for the history": fields(**{PROMPTS: [[[1]]]}),
    "a template with two histories": fields(**{PROMPTS: [["items", "items"]]}),
    "a template of queries without one": fields("query_prompts", alone=[[[1]]]),
    "a catalogue with two columns of titles": rows(CATALOGUE, lambda table: table.append_column("title", table["title"])),
    "an indexer without settings": lambda folder: (folder / "rqvae" / CONFIG).unlink(),
    "an indexer without its codebooks": weights(lambda one: one.pop("codebooks"), f"rqvae/{WEIGHTS}"),
    "an indexer with NaN": number("codebooks", float("nan"), f"rqvae/{WEIGHTS}"),
    "an adapter next to the weights": write("adapter_config.json", '{"base_model_name_or_path": "other"}'),
    "a tokenizer without one of the codes": drop_token,
}
CASES = [
    *((name, "cllm4rec", change) for name, change in CLLM4REC.items()),
    *((name, "lcrec", change) for name, change in LCREC.items()),
    *((name, "hybrid", change) for name, change in HYBRID.items()),
]


@pytest.fixture(scope="module")
def saved(tiny_backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model of each system."""
    folder = tmp_path_factory.mktemp("saved")
    model = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones["gpt2"],
        users=KnownUsers([7, 1], np.array([0, 2, 3]), np.array([0, 4, 2], np.int32)),
        catalogue=Catalogue(pa.table({"item_id": list("abcdef"), "title": [f"title {number}" for number in range(6)]})),
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(
        tiny_backbones["gpt2"], num_users=2, num_items=6, id_offset=model.config.id_offset
    )
    model.config.recommendation_prompts = recommendation_segments(Prompts(), tokenizer)
    embeddings = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float32)
    hybrid, words = new_lcrec(tiny_backbones["gpt2"], item_head=True, item_inputs=True, embeddings=embeddings)
    pairs = np.arange(13), (np.arange(12, dtype=np.int32) + 1) % 12, np.ones(12, np.float32)  # each item and the next one
    hybrid.linear_parts = LinearParts([LinearPart("ease", 0.5, 0.0, None, *pairs)], hybrid.config.catalogue_fingerprint)
    made = {"cllm4rec": (model, tokenizer), "lcrec": new_lcrec(tiny_backbones["gpt2"]), "hybrid": (hybrid, words)}
    for name, (one, words) in made.items():
        one.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


def table() -> dict[str, str]:
    """Return folder -> message of the table on the page."""
    lines = PAGE.read_text(encoding="utf-8").split("## Bad folders", 1)[1].split("\n## ", 1)[0].splitlines()
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| folder")]
    return dict(found)


def said(message: str, real: str) -> bool:
    """Check whether a message of the page is the real one; `...` may be any words."""
    return re.search(r".*".join(map(re.escape, message.strip("`").split("..."))), real) is not None


def test_every_row_has_a_case() -> None:
    assert list(table()) == [name for name, _, _ in CASES]
    assert len(CASES) >= 60


def test_the_folders_are_good_before_they_are_changed(saved: Path) -> None:
    for name in ("cllm4rec", "lcrec", "hybrid"):
        assert check_folder(saved / name).device.type == "meta"
        model = load_recommender(saved / name, device="cpu")
        assert model.recommend(users=model.users.ids.ids_of([0]), k=2).table.num_rows == 2
        load_tokenizer(saved / name)


@pytest.mark.parametrize(("name", "system", "change"), CASES, ids=[name for name, _, _ in CASES])
def test_a_bad_folder_is_refused_in_one_line(
    name: str, system: str, change: Change, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(saved / system, tmp_path / "model")
    change(folder)
    with pytest.raises(CLLM4RecError) as raised:
        load_recommender("./model", device="cpu")
        check_folder("./model")
    assert said(table().get(name, "?"), str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(CLLM4RecError):  # a push looks at no weights but for their numbers
        check_folder("./model")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name", ["drift.json", "examples.json", "training.json", "evaluation-test.json", "training_curves.png"])
def test_files_that_a_model_does_not_need_do_not_stop_it(name: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "hybrid", tmp_path / "model")
    (folder / name).write_bytes(b"\xff{")
    model = load_recommender(folder, device="cpu")
    assert model.recommend(users=model.users.ids.ids_of([0]), k=2).table.num_rows == 2


def test_a_hybrid_that_is_none_any_more_is_saved_as_such(saved: Path, tmp_path: Path) -> None:
    model = load_recommender(saved / "hybrid", device="cpu")
    assert model.config.linear_parts == ["ease"]
    model.linear_parts = None
    model.save_pretrained(tmp_path / "alone")
    assert load_recommender(tmp_path / "alone", device="cpu").config.linear_parts == []


def test_a_pickle_next_to_safetensors_is_not_read(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(saved / "cllm4rec", tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Code()))
    load_recommender("./model", device="cpu")
    assert not (tmp_path / "unpickled").exists()
