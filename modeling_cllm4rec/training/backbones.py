"""Train a small causal language model on the texts of a data folder, for use without a pretrained one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import BIOGRAPHY, ITEM_TEXTS

logger = logging.getLogger(__name__)

END = "<|end|>"


class BackboneBar(ProgressCallback):
    """The bar of transformers with a name, without the dictionary of seconds that it prints at the end."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("backbone")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print nothing."""


def training_texts(data: RecommendationData) -> Iterator[str]:
    """Yield item texts, biographies, and the reviews of training pairs, but no text of a validation or test pair."""
    for column in ITEM_TEXTS:
        if column in data.items.column_names:
            yield from (text for text in text_column(data.items, column) if text)
    if BIOGRAPHY in data.users.column_names:
        yield from (text for text in text_column(data.users, BIOGRAPHY) if text)
    yield from data.reviews()["review"].to_pylist()


def train_backbone(
    data: RecommendationData,
    output: str | Path,
    *,
    vocab_size: int = 2000,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    context_length: int = 256,
    max_text_tokens: int | None = None,
    epochs: float = 3.0,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> Path:
    """Train a byte-level BPE tokenizer and a small GPT-2 on the training texts of a data folder.

    Args:
        data: the prepared folder.
        output: folder of the model.
        vocab_size: tokens of the tokenizer.
        hidden_size, layers, heads: shape of the GPT-2.
        context_length: positions of the GPT-2; longer texts are cut.
        max_text_tokens: tokens at which texts are cut already, for a shorter training; None cuts at `context_length`.
        epochs: passes over the texts.
        batch_size: texts per optimizer step.
        lr: highest learning rate.
        seed: seed of weights and batches.

    Returns:
        `output`, which `AutoModelForCausalLM.from_pretrained` reads.

    Raises:
        InputError: the data has no texts.
    """
    texts = list(training_texts(data))
    if not texts:
        raise InputError(f"{data.folder} has no texts to train a language model on; name a pretrained backbone instead")
    tokenizer = train_tokenizer(texts, vocab_size, context_length)
    set_seed(seed)
    model = small_decoder(tokenizer, hidden_size, layers, heads)
    model.loss_type = "ForCausalLM"  # transformers derives none from the name GPT2LMHeadModel, and would warn of it
    ids = tokenizer([text + END for text in texts], truncation=True, max_length=max_text_tokens or context_length)["input_ids"]
    documents = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, train_dataset=documents, data_collator=collator)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(BackboneBar())
    trainer.train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    logger.info("backbone of %d parameters saved in %s", model.num_parameters(), output)
    return Path(output)


def untrained_backbone(
    data: RecommendationData,
    output: str | Path,
    prompts: Iterable[str],
    *,
    vocab_size: int = 2000,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    context_length: int = 512,
    seed: int = 0,
) -> Path:
    """Save a small GPT-2 with random weights, and a tokenizer trained on prompts and training texts.

    TIGER (arXiv 2305.05065) trains a small encoder-decoder (T5) on semantic IDs. This is a decoder that reads the same sequences.

    Args:
        prompts: texts that the tokenizer is trained on in addition to those of the data folder, which may have none.

    Returns:
        `output`, which `AutoModelForCausalLM.from_pretrained` reads.

    Raises:
        InputError: `hidden_size` is no multiple of `heads`.
    """
    if hidden_size % heads:
        raise InputError(f"hidden_size is {hidden_size} and heads is {heads}; hidden_size must be a multiple of heads")
    tokenizer = train_tokenizer([*prompts, *training_texts(data)], vocab_size, context_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_decoder(tokenizer, hidden_size, layers, heads)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    logger.info("decoder of %d parameters with random weights", model.num_parameters())
    return Path(output)


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on texts, with one token that ends and pads a text."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=vocab_size, min_frequency=2, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token=END, pad_token=END, model_max_length=context_length
    )


def small_decoder(tokenizer: PreTrainedTokenizerFast, hidden_size: int, layers: int, heads: int) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights for a tokenizer's vocabulary and context length."""
    end = tokenizer.eos_token_id
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=tokenizer.model_max_length,
            n_embd=hidden_size,
            n_layer=layers,
            n_head=heads,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
