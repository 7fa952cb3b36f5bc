"""transformers' suites for tokenizers over ours, and over the plain tokenizer for comparison."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TokenizersBackend

from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens

TEXT = "This is a test of a tokenizer.\nHello there, how are you doing? I was born in 92000, and this is false.\n" * 20


def byte_level(folder: Path) -> None:
    """Save a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder, bpe.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    special = ["<unk>", "<|endoftext|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    ends = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **ends, model_max_length=1024).save_pretrained(folder)


class Suite(TokenizerTesterMixin, TokenizersBackendTesterMixin):
    tokenizer_class: type[Any] = TokenizersBackend

    @classmethod
    def save(cls, backbone: Path, folder: Path) -> None:
        """Save the tokenizer of a suite, from that of the backbone."""
        AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)

    @classmethod
    def setUpClass(cls) -> None:
        backbone, folder, cls.tmpdirname = (tempfile.mkdtemp() for _ in range(3))
        byte_level(Path(backbone))
        cls.save(Path(backbone), Path(folder))
        cls.from_pretrained_id, cls.rust_tokenizer_class = [folder], cls.tokenizer_class
        cls.tokenizers_list = [(cls.tokenizer_class, folder, {})]
        cls._data = TEXT.strip()
        cls.tokenizer_class.from_pretrained(folder).save_pretrained(cls.tmpdirname)


class PlainTokenizerTest(Suite, unittest.TestCase):
    """The backbone's own tokenizer: what fails here is not ours."""


class CLLM4RecTokenizerTest(Suite, unittest.TestCase):
    tokenizer_class = CLLM4RecTokenizer

    @classmethod
    def save(cls, backbone: Path, folder: Path) -> None:
        CLLM4RecTokenizer.from_backbone(backbone, num_users=50, num_items=120).save_pretrained(folder)


class LCRecTokenizerTest(Suite, unittest.TestCase):
    @classmethod
    def save(cls, backbone: Path, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        add_semantic_id_tokens(tokenizer, 3, 4)
        tokenizer.save_pretrained(folder)
