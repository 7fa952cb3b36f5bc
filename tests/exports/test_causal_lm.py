"""LC-Rec as a plain causal language model: its files alone give what `recommend` gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from lcrec_models import CODES, ITEMS, LEVELS, new_lcrec
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_cllm4rec.exports.causal_lm import export_causal_lm, plain_tokenizer
from modeling_cllm4rec.exports.command import main
from modeling_cllm4rec.exports.reference_decoder import causal_lm, prompt_of, search
from modeling_cllm4rec.exports.semantic_id_files import token_names, trie_arrays
from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForCausalLM, LCRecForRecommendation

ALONE = "import runpy, sys; sys.modules['modeling_cllm4rec'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
"""Runs a script to which our package cannot be imported."""


def saved(backbone: Path, folder: Path, **changes: Any) -> LCRecForRecommendation:
    model, tokenizer = new_lcrec(backbone, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LCRecForRecommendation.from_pretrained(folder)


@pytest.fixture(scope="module", params=["gpt2", "llama-tied", "qwen2"])
def exported(request, tiny_backbones, tmp_path_factory) -> tuple[LCRecForRecommendation, Path]:
    folder = tmp_path_factory.mktemp("causal-lm")
    model = saved(tiny_backbones[request.param], folder / "model")
    export_causal_lm(model, folder / "out")
    return model, folder / "out"


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    about = json.loads((folder / "semantic_ids.json").read_text(encoding="utf-8"))
    return about, load_file(folder / "semantic_id_trie.safetensors")


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("beams", [3, 12])
def test_the_decoder_finds_what_recommend_finds(exported, beams, exclude_seen):
    model, folder = exported
    about, trie = read(folder)
    log_probs = causal_lm(folder)
    for history in ([0, 3, 5], [11], list(range(12))[:11], [4] * 30):
        given = [ITEMS[item] for item in history]
        expected = model.recommend(histories=[given], k=3, num_beams=beams, exclude_seen=exclude_seen).to_pylist()
        seen = history if exclude_seen else ()
        found = search(log_probs, trie, 0, prompt_of(about, history), beams, seen)[:3]
        assert [ITEMS[item] for _, item in found] == [row["item"] for row in expected]
        np.testing.assert_allclose([score for score, _ in found], [row["score"] for row in expected], atol=1e-5)


def test_the_prompt_is_that_of_the_model(exported, monkeypatch):
    model, folder = exported
    about, _ = read(folder)
    for history in ([2], [1, 2, 3], list(range(12)) * 4):
        np.testing.assert_array_equal(prompt_of(about, history), model.build_prompts(None, [np.array(history)])[0])
    about["prompts"] = [[[7, 8], "items", [9]]]
    monkeypatch.setattr(model.config, "recommendation_prompts", about["prompts"])
    for history in ([2], list(range(12)) * 4):
        np.testing.assert_array_equal(prompt_of(about, history), model.build_prompts(None, [np.array(history)])[0])
    with pytest.raises(ValueError, match="history has 0 items"):
        prompt_of(about, [])


@pytest.mark.parametrize(
    "exported",
    ["gpt2", pytest.param("llama-tied", marks=pytest.mark.slow), pytest.param("qwen2", marks=pytest.mark.slow)],
    indirect=True,
)
def test_the_decoder_runs_without_this_package(exported):
    model, folder = exported
    history = ["item 3", "<a_0>", "ä"]
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "decode.py"), *history, "--k", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = model.recommend(histories=[history], k=5).to_pylist()
    assert [(row["item"], row["rank"]) for row in found] == [(row["item"], row["rank"]) for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=1e-5)


def test_the_folder_is_plain(exported):
    model, folder = exported
    config = json.loads((folder / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == [type(model.backbone).__name__]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".jinja", ".py"}
    assert [path.name for path in folder.glob("*.py")] == ["decode.py"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in settings
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == LEVELS and not generation.get("do_sample")
    again = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, model.backbone(ids).logits)
    assert model.backbone.generation_config.max_new_tokens is None


def test_the_tokenizer_reads_and_writes_semantic_ids_as_words(exported):
    model, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    about, _ = read(folder)
    (prompt,) = model.build_prompts(None, [np.array([0, 3, 5])])
    text = tokenizer.decode(prompt)
    assert tokenizer(text)["input_ids"] == prompt.tolist()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert (chat if isinstance(chat, list) else chat["input_ids"]) == prompt.tolist()
    item = about["items"][4]
    assert tokenizer.convert_tokens_to_ids(item["tokens"]) == item["token_ids"]
    assert tokenizer.decode(item["token_ids"], skip_special_tokens=True) == "".join(item["tokens"])
    assert len(tokenizer) == len(model.tokenizer)


def test_the_items_and_their_codes(exported):
    model, folder = exported
    about, trie = read(folder)
    assert [item["item_id"] for item in about["items"]] == ITEMS and about["items"][2]["title"] == "title 2"
    codes = model.semantic_ids.codes
    assert [item["token_ids"] for item in about["items"]] == model.tokens_of(np.arange(12)).tolist()
    by_codes = json.loads((folder / "sid2item.json").read_text())
    assert by_codes == {f"{first},{second}": item for (first, second), item in zip(codes.tolist(), ITEMS, strict=True)}
    assert trie["row_pointers"].dtype == np.int32


def test_the_trie_holds_every_item_once():
    codes = np.random.default_rng(0).permutation(4**3)[:30]
    codes = np.stack([codes // 16, codes // 4 % 4, codes % 4], axis=1)
    arrays = trie_arrays(ItemTrie(codes, 4), 100)
    paths = {}
    stack = [(0, ())]
    while stack:
        node, path = stack.pop()
        edges = range(arrays["row_pointers"][node], arrays["row_pointers"][node + 1])
        if not edges:
            paths[int(arrays["leaf_items"][node])] = path
        else:
            assert arrays["leaf_items"][node] == -1
        stack += [(int(arrays["children"][edge]), (*path, int(arrays["tokens"][edge]))) for edge in edges]
    assert paths == {item: tuple(100 + 4 * level + code for level, code in enumerate(row)) for item, row in enumerate(codes)}


def test_lora_is_merged(tiny_backbones, tmp_path):
    model, tokenizer = new_lcrec(tiny_backbones["gpt2"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(
        LCRecForCausalLM.from_pretrained(tmp_path / "model"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True),
    ).eval()
    export_causal_lm(adapted, tmp_path / "out")
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(plain(ids).logits, adapted(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert (plain(ids).logits - model.backbone(ids).logits).abs().max() > 1e-3
    assert any("lora_" in name for name, _ in adapted.named_parameters())  # merged in a copy


def test_names_of_tokens(tiny_backbones, tmp_path):
    model = saved(tiny_backbones["gpt2"], tmp_path / "model")
    about = export_causal_lm(model, tmp_path / "out", "<s_{level}_{code}>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    first = about["first_token"]
    assert tokenizer.convert_ids_to_tokens([first, first + CODES + 2]) == ["<s_a_0>", "<s_b_2>"]
    assert tokenizer.convert_tokens_to_ids("<a_0>") in (None, tokenizer.unk_token_id)
    assert read(tmp_path / "out")[0]["items"][0]["tokens"][0].startswith("<s_a_")
    for wrong in ("<{level}>", "{code}", "<{level}_{code}_{code}>"):
        with pytest.raises(ValueError, match="token_format is .* must hold {level} and {code} once each"):
            token_names(2, 3, wrong)
    word = next(word for word in model.tokenizer.get_vocab() if word.endswith("a"))
    with pytest.raises(ValueError, match="the tokenizer already has the token"):
        model.tokenizer.add_tokens([f"{word}~b3"])
        plain_tokenizer(model, f"{word}~{{level}}{{code}}")


def test_the_command(tiny_backbones, tmp_path, capsys):
    saved(tiny_backbones["gpt2"], tmp_path / "model", item_head=True)
    flags = ["causal-lm", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "GPT2LMHeadModel with" in out and "12 items of 2 tokens" in out and "its item head is left out" in out
    assert main([*flags[:-1], str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["item_head_left_out"] is True
    assert main(flags) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_model_that_reads_item_rows_is_no_plain_language_model(tiny_backbones, tmp_path):
    reader = saved(tiny_backbones["gpt2"], tmp_path / "model", item_head=True, item_inputs=True)
    with pytest.raises(ValueError, match=r"reads the rows of its item head in histories \(item_inputs\), which a"):
        export_causal_lm(reader, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_system_has_no_semantic_ids(model, tmp_path):
    with pytest.raises(ValueError, match="export causal-lm: got a CLLM4RecForRecommendation, whose items are no tokens"):
        export_causal_lm(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
