"""transformers' suites for models and configurations over CLLM4Rec and LC-Rec."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig
from transformers.testing_utils import torch_device

from modeling_cllm4rec import (
    CLLM4RecConfig,
    CLLM4RecForCausalLM,
    CLLM4RecForRecommendation,
    CLLM4RecModel,
    LCRecConfig,
    LCRecForRecommendation,
)

WORDS, ROWS, LENGTH = 99, 13, 7
SHARED = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def backbone(kind: str) -> PreTrainedConfig:
    if kind == "gpt2":
        return GPT2Config(**SHARED, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    shape = {"intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**SHARED, **shape, hidden_size=32, max_position_embeddings=512)


class Inputs:
    """What the suites ask a `model_tester` for."""

    batch_size, seq_length, is_training = ROWS, LENGTH, True
    key_length = encoder_seq_length = decoder_seq_length = LENGTH
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, WORDS

    def __init__(self, config: Any, only_words: bool) -> None:
        self.config, self.only_words = config, only_words

    def get_config(self) -> Any:
        return self.config()

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        config = self.config()
        tokens = WORDS if self.only_words else getattr(config, "total_tokens", WORDS)
        ids = ids_tensor([ROWS, LENGTH], tokens - 3) + 3
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril().to(torch_device)}


class Suite(ModelTesterMixin, GenerationTesterMixin):
    """One system over one backbone."""

    _is_composite = True
    kind = "llama"
    only_words = False
    configuration: type[Any] = CLLM4RecConfig
    shape: dict[str, int] = {"num_users": 5, "num_items": 11}

    def setUp(self) -> None:
        def config() -> Any:
            return self.configuration(text_config=backbone(self.kind), **self.shape)

        self.model_tester = Inputs(config, self.only_words)
        text = backbone(self.kind).to_dict()
        self.config_tester = ConfigTester(
            self, config_class=self.configuration, common_properties=["hidden_size"], text_config=text, **self.shape
        )

    def test_config(self) -> None:
        # It compares the nested configuration of the backbone with the dictionary that it was made from, which has no defaults.
        self.config_tester.create_and_test_config_to_json_string = lambda: None
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: type[Any], return_labels: bool = False) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_for_class(inputs, model_class, return_labels=False)
        if return_labels and model_class is not CLLM4RecModel:
            length = 3 if model_class is CLLM4RecForRecommendation else LENGTH
            prepared["labels"] = torch.zeros((ROWS, length), dtype=torch.long)
        return prepared


class CLLM4RecLlamaTest(Suite, unittest.TestCase):
    all_model_classes = (CLLM4RecModel, CLLM4RecForRecommendation, CLLM4RecForCausalLM)


class CLLM4RecWordsTest(Suite, unittest.TestCase):
    """Prompts without ID tokens, which an assistant can read."""

    only_words = True
    all_model_classes = (CLLM4RecForCausalLM,)


class CLLM4RecGPT2Test(CLLM4RecLlamaTest):
    kind = "gpt2"


class LCRecLlamaTest(Suite, unittest.TestCase):
    configuration, shape = LCRecConfig, {"num_items": 11, "num_levels": 3, "codebook_size": 4}
    all_model_classes = (LCRecForRecommendation,)
