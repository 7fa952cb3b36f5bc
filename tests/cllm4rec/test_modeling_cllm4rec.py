"""The model over every backbone: causality, embeddings, heads, padding, losses."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, OPTConfig

from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import CLLM4RecConfig
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, CLLM4RecModel
from modeling_cllm4rec.core.prompt_assembly import pad_right

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
gpt2_only = pytest.mark.parametrize("backbone", ["gpt2"], indirect=True)


def pad_left(rows: list[np.ndarray], value: int) -> np.ndarray:
    return pad_right([row[::-1] for row in rows], value)[:, ::-1].copy()


def some_ids(model, length: int = 9, seed: int = 0) -> torch.Tensor:
    """(2, length) words with a user and an item token among them."""
    config = model.config
    ids = torch.randint(5, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 1] = config.id_offset + 2
    ids[:, 4] = config.id_offset + config.num_users + torch.tensor([3, 11])
    return ids


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_attention_is_causal(bare, side):
    ids = some_ids(bare)
    changed = torch.cat([ids[:, :5], some_ids(bare, seed=1)[:, 5:]], dim=1)
    states, others = bare(ids, side=side).last_hidden_state, bare(changed, side=side).last_hidden_state
    torch.testing.assert_close(states[:, :5], others[:, :5], **CLOSE)
    assert not torch.allclose(states[:, 5], others[:, 5], **CLOSE)
    shorter = bare(ids[:, :5], side=side).last_hidden_state
    torch.testing.assert_close(states[:, :5], shorter, **CLOSE)


@torch.no_grad()
def test_attention_is_causal_whichever_way_it_is_computed(bare, saved):
    ids = some_ids(bare)
    assert bare.backbone.config._attn_implementation == "sdpa"
    eager = CLLM4RecModel.from_pretrained(saved, attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(ids).last_hidden_state, bare(ids).last_hidden_state, **CLOSE)


@torch.no_grad()
def test_words_alone_are_read_as_by_the_backbone(backbone, writer, bare):
    own = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None] % own.config.vocab_size
    expected = own(ids).logits
    assert expected.shape[-1] == writer.config.vocab_size
    assert torch.equal(writer(ids).logits, expected)
    for side in SIDES:
        states = bare(ids, side=side).last_hidden_state
        torch.testing.assert_close(bare.word_head(states), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_embeddings_are_rows_of_one_long_table(bare, side):
    users, items = bare.tables(side)
    words = bare.get_input_embeddings().weight
    gap = torch.zeros(bare.config.id_offset - len(words), words.shape[1])
    table = torch.cat([words, gap, users.weight, items.weight])
    ids = torch.cat([some_ids(bare), some_ids(bare, seed=1)])
    ids[0, :2] = torch.tensor([bare.config.id_offset, bare.config.total_tokens - 1])  # the first and the last ID token
    assert len(table) == bare.config.total_tokens
    assert torch.equal(bare.embed_tokens(ids, side), table[ids])


@gpt2_only
def test_only_the_rows_of_one_side_that_were_read_get_a_gradient(saved):
    model = CLLM4RecModel.from_pretrained(saved)
    ids = some_ids(model)
    model(ids, side="content").last_hidden_state.square().sum().backward()
    for table, rows in zip(model.tables("content"), ([2], [3, 11]), strict=True):
        assert table.weight.grad.abs().sum(-1).nonzero().flatten().tolist() == rows
    assert all(table.weight.grad is None for table in model.tables("collaborative"))


@gpt2_only
@torch.no_grad()
def test_each_head_reads_its_own_side(saved, recommender, writer):
    ids = some_ids(recommender)
    scores, words = recommender(ids).logits, writer(ids).logits
    for model, side, moves in ((recommender, "content", False), (recommender, "collaborative", True)):
        changed = copy.deepcopy(model)
        changed.tables(side)[0].weight.add_(1.0)
        assert torch.equal(changed(ids).logits, scores) is not moves
    for side, moves in (("content", True), ("collaborative", False)):
        changed = copy.deepcopy(writer)
        changed.tables(side)[0].weight.add_(1.0)
        assert torch.equal(changed(ids).logits, words) is not moves


@gpt2_only
def test_a_side_that_is_none(bare):
    with pytest.raises(ValueError, match="side is 'both'; allowed are 'collaborative' and 'content'"):
        bare(some_ids(bare), side="both")


@torch.no_grad()
def test_padding_on_either_side_changes_no_score(recommender):
    rows = [row.numpy()[: 9 - cut] for row, cut in zip(some_ids(recommender).repeat(2, 1), (0, 3, 1, 5), strict=True)]
    alone = torch.cat([recommender(torch.from_numpy(row)[None]).logits for row in rows])
    for pad in (pad_right, pad_left):
        ids, mask = (torch.from_numpy(pad(part, 0)) for part in (rows, [np.ones_like(row) for row in rows]))
        torch.testing.assert_close(recommender(ids, attention_mask=mask).logits, alone, **CLOSE)
    assert alone.shape == (4, recommender.num_items)


@torch.no_grad()
def test_padding_on_either_side_changes_no_word(writer, bare):
    rows = [row.numpy()[: 9 - cut] for row, cut in zip(some_ids(writer), (0, 4), strict=True)]
    for model, read in ((writer, lambda output: output.logits), (bare, lambda output: output.last_hidden_state)):
        alone = torch.cat([read(model(torch.from_numpy(row)[None]))[0] for row in rows])
        for pad in (pad_right, pad_left):
            ids, mask = (torch.from_numpy(pad(part, 0)) for part in (rows, [np.ones_like(row) for row in rows]))
            together = read(model(ids, attention_mask=mask))[mask.bool()]
            torch.testing.assert_close(together, alone, **CLOSE)


@torch.no_grad()
def test_the_state_of_the_last_real_token_is_scored(recommender, bare):
    ids, mask = some_ids(recommender), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    states = bare(ids, attention_mask=mask).last_hidden_state
    output = recommender(ids, attention_mask=mask)
    expected = torch.stack([states[0, 8], states[1, 5]])
    torch.testing.assert_close(output.last_hidden_state, expected, **CLOSE)
    torch.testing.assert_close(output.logits, expected @ recommender.item_collaborative.weight.t(), **CLOSE)


@torch.no_grad()
def test_losses_equal_plain_torch(recommender, writer):
    ids = some_ids(writer)
    labels = ids.clone()
    labels[:, :6] = -100  # the prompt, ID tokens included
    output = writer(ids, labels=labels)
    chosen = output.logits[:, 5:8].log_softmax(-1).gather(-1, ids[:, 6:, None])
    torch.testing.assert_close(output.loss, -chosen.mean(), **CLOSE)
    targets = torch.tensor([[0, 7], [4, -100]])
    output = recommender(ids, labels=targets)
    log_softmax = output.logits.log_softmax(-1)
    expected = -(log_softmax[0, 0] + log_softmax[0, 7] + log_softmax[1, 4]) / 2
    torch.testing.assert_close(output.loss, expected, **CLOSE)
    chunked = recommender(ids, labels=targets, item_loss="chunked").loss
    torch.testing.assert_close(chunked, expected, **CLOSE)


@gpt2_only
def test_the_causal_lm_takes_ids_or_embeddings(writer):
    ids = some_ids(writer)
    embeds = writer.embed_tokens(ids, "content")
    assert torch.equal(writer(inputs_embeds=embeds).logits, writer(ids).logits)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
            writer(**arguments)


@gpt2_only
def test_gradient_checkpointing_changes_no_gradient(saved):
    gradients = []
    for checkpointed in (False, True):
        model = CLLM4RecForRecommendation.from_pretrained(saved).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            if hasattr(model, "activation_checkpointing_enable"):
                model.activation_checkpointing_enable()
            else:  # its name before transformers 5.23
                model.gradient_checkpointing_enable()
        model(some_ids(model), labels=torch.tensor([[1], [2]])).loss.backward()
        gradients.append(model.user_collaborative.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@gpt2_only
def test_new_words_are_refused(writer):
    with pytest.raises(ValueError, match="resize_token_embeddings: ID tokens start at id_offset=400.*add words to the backbone"):
        writer.resize_token_embeddings(500)


@gpt2_only
def test_the_parts_that_transformers_asks_for(writer):
    assert writer.get_input_embeddings() is writer.backbone.get_input_embeddings()
    assert writer.get_output_embeddings() is writer.backbone.lm_head
    assert writer.get_decoder() is writer.backbone.transformer
    changed = copy.deepcopy(writer)
    changed.set_input_embeddings(torch.nn.Embedding(400, 32))
    assert changed.backbone.transformer.wte is changed.get_input_embeddings()


def test_a_backbone_of_two_widths_is_refused():
    text_config = OPTConfig(
        vocab_size=20, hidden_size=8, word_embed_proj_dim=4, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(ValueError, match="word embeddings have width 4 and its states 8: .*choose another backbone"):
        CLLM4RecModel(CLLM4RecConfig(text_config, num_users=1, num_items=1))


def test_a_backbone_with_other_logits_is_refused(tmp_path):
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
    config = CohereConfig(**small, logit_scale=0.01, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=1.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="CohereForCausalLM computes its logits in a way that this model does not reproduce"):
        CLLM4RecModel.from_backbone(tmp_path, num_users=1, num_items=1)
