"""LC-Rec as a plain causal language model of transformers, which any engine loads: no code of ours, no configuration of ours."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.exports.output_folder import new_output_folder
from modeling_cllm4rec.exports.semantic_id_files import TOKEN_FORMAT, token_names, write_semantic_ids
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForRecommendation

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The words of the messages as they are: LC-Rec is trained on plain prompts, and some engines take chats only."""


def export_causal_lm(model: Any, folder: str | Path, token_format: str = TOKEN_FORMAT) -> dict[str, Any]:
    """Write the language model inside LC-Rec as a folder for `AutoModelForCausalLM`, with its semantic IDs as files.

    Its scores are those of `recommend(scoring="beam")` and `scoring="all"`. An item head is no part of a causal language model
    and is left out.

    Args:
        model: an aligned LC-Rec model with its catalogue, or a `peft.PeftModel` of one, whose matrices are merged in a copy.
        folder: new or empty output folder for the model (`config.json`, `model.safetensors`, `generation_config.json`), its
            tokenizer, `semantic_ids.json`, `semantic_id_trie.safetensors`, `sid2item.json` and `decode.py`.
        token_format: names of the tokens of semantic IDs, with `{level}` (a letter) and `{code}`.

    Returns:
        `architecture`, `parameters`, `dtype`, `items`, `levels`, `codebook_size`, `first_token` and `item_head_left_out`.

    Raises:
        InputError: a model of another system, without prompts or with `item_inputs`, a token format without place for the level
            or the code or with a name that is taken, or a tokenizer that is no fast one.
        ExistingFileError: the folder is not empty.

    Example:
        >>> export_causal_lm(model, "exports/lcrec")["architecture"]  # doctest: +SKIP
        'Qwen3ForCausalLM'
    """
    if isinstance(model, peft.PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    require_semantic_ids(model, "export causal-lm")
    if model.config.item_inputs:
        raise InputError(
            "export causal-lm: the model reads the rows of its item head in histories (item_inputs), which a plain language "
            "model does not have; align with item_inputs=False, or without an item head"
        )
    with new_output_folder(folder) as temporary:
        plain_tokenizer(model, token_format).save_pretrained(temporary)
        file = temporary / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        # The name that every version of transformers knows, also those of engines that pin an older one.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        backbone = model.backbone
        own = backbone.generation_config
        try:
            backbone.generation_config = copy.deepcopy(model.generation_config)
            backbone.generation_config.max_new_tokens = model.config.num_levels
            backbone.save_pretrained(temporary)
        finally:
            backbone.generation_config = own
        about = write_semantic_ids(model, temporary, token_format)
    return {
        "architecture": type(backbone).__name__,
        "parameters": sum(weight.numel() for weight in backbone.parameters()),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "items": model.num_items,
        **{name: about[name] for name in ("levels", "codebook_size", "first_token")},
        "item_head_left_out": model.item_head is not None,
    }


def require_semantic_ids(model: Any, what: str) -> None:
    """Check that a model is an LC-Rec model that is ready to recommend.

    Raises:
        InputError: it is another one, or it has no prompts or no catalogue.
    """
    if not isinstance(model, LCRecForRecommendation):
        raise InputError(
            f"{what}: got a {type(model).__name__}, whose items are no tokens of its language model; allowed is an aligned "
            "LC-Rec model; export this one by `cllm4rec export onnx` or `export vectors`"
        )
    model.check_ready()


def plain_tokenizer(model: LCRecForRecommendation, token_format: str = TOKEN_FORMAT) -> PreTrainedTokenizerFast:
    """Return the model's tokenizer as one that is defined by `tokenizer.json` alone.

    The tokens of semantic IDs are ordinary added tokens in it, not special ones: engines leave special tokens out of texts and
    out of grammars. Nothing is added to a text, because the prompts have their own first token.

    Raises:
        InputError: the tokenizer is no fast one, or a name of the format is taken.
    """
    own: PreTrainedTokenizerBase = model.tokenizer
    config = model.config
    if not own.is_fast:
        raise InputError(
            f"export causal-lm: the tokenizer is a {type(own).__name__} without tokenizer.json; save the backbone with a fast "
            "tokenizer (AutoTokenizer.from_pretrained(BACKBONE, use_fast=True)) and align again"
        )
    names = token_names(config.num_levels, config.codebook_size, token_format)
    written = json.loads(own.backend_tokenizer.to_str())
    first = config.first_index_token
    kept = {token["content"] for token in written["added_tokens"] if not first <= token["id"] <= config.last_index_token}
    taken = sorted(kept.union(written["model"].get("vocab", ())) & set(names))
    if taken:
        raise InputError(f"token_format is {token_format!r}; the tokenizer already has the token {taken[0]}; choose another one")
    for token in written["added_tokens"]:
        if first <= token["id"] <= config.last_index_token:
            token |= {"content": names[token["id"] - first], "special": False, "normalized": False}
    written["post_processor"] = None
    special = {name: getattr(own, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        **{name: token for name, token in special.items() if token is not None},
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


__all__ = ["CHAT_TEMPLATE", "export_causal_lm", "plain_tokenizer", "require_semantic_ids"]
