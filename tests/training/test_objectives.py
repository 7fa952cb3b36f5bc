"""The losses against a second implementation: one document at a time, no padding, plain log_softmax and loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForRecommendation, Side
from modeling_cllm4rec.cllm4rec.objectives import (
    LossTerms,
    RegularizationConfig,
    holdout_terms,
    next_item_terms,
    next_word_terms,
)
from modeling_cllm4rec.corpora.batches import Batch, collate

NUM_USERS, NUM_ITEMS = 3, 7
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tiny_backbones: dict[str, Path]) -> CLLM4RecForRecommendation:
    """Return a tiny model in evaluation mode, its four tables large enough to matter and all different."""
    model = CLLM4RecForRecommendation.from_backbone(
        tiny_backbones[request.param], num_users=NUM_USERS, num_items=NUM_ITEMS, initializer_range=0.5, seed=3
    )
    model.backbone.requires_grad_(False)
    return model.eval()


@pytest.fixture(autouse=True)
def _no_gradients(model: CLLM4RecForRecommendation) -> None:
    model.zero_grad(set_to_none=True)


def user(model: CLLM4RecForRecommendation, index: int) -> int:
    return model.config.id_offset + index


def item(model: CLLM4RecForRecommendation, index: int) -> int:
    return model.config.id_offset + NUM_USERS + index


@pytest.fixture
def interactions(model: CLLM4RecForRecommendation) -> Batch:
    """Two documents: user 1 with items 4, 0, 6 after a prompt of 3 tokens; user 2 with item 4 alone."""
    rows = [
        np.array([user(model, 1), 20, 21, item(model, 4), item(model, 0), item(model, 6)]),
        np.array([user(model, 2), 20, 21, item(model, 4)]),
    ]
    return collate(rows, [3, 3])


@pytest.fixture
def texts(model: CLLM4RecForRecommendation) -> Batch:
    """Three documents: a review (the item named twice in the prompt), an item's title, a review of the same item."""
    rows = [
        np.array([user(model, 0), 30, item(model, 5), item(model, 5), 7, 8, 9, 8]),
        np.array([item(model, 2), 31, 11, 12]),
        np.array([user(model, 2), 30, item(model, 5), 13]),
    ]
    return collate(rows, [4, 2, 3])


@pytest.fixture
def prompts(model: CLLM4RecForRecommendation) -> Batch:
    """Three masked histories: two held-out items, one, and one of a user without a user token."""
    rows = [
        np.array([user(model, 1), 20, item(model, 3), item(model, 1), 22]),
        np.array([user(model, 0), 20, item(model, 2), 22]),
        np.array([20, item(model, 6), 22]),
    ]
    held = [np.array([5, 0]), np.array([4]), np.array([1])]
    return collate(rows, [5, 4, 3], held)


def documents(batch: Batch) -> list[tuple[torch.Tensor, int]]:
    rows = [ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    return list(zip(rows, batch.prompt_lengths.tolist(), strict=True))


@torch.no_grad()
def states(model: CLLM4RecForRecommendation, ids: torch.Tensor, side: Side) -> torch.Tensor:
    return model.hidden_states(ids[None], None, side)[0]


@torch.no_grad()
def loop_next_item(model: CLLM4RecForRecommendation, batch: Batch) -> list[float]:
    values = []
    for ids, prompt in documents(batch):
        logits = states(model, ids, "collaborative") @ model.item_collaborative.weight.T
        log_p = torch.log_softmax(logits, -1)
        values.append(-sum(float(log_p[place - 1, ids[place] - item(model, 0)]) for place in range(prompt, len(ids))))
    return values


@torch.no_grad()
def loop_next_word(model: CLLM4RecForRecommendation, batch: Batch) -> list[float]:
    values = []
    for ids, prompt in documents(batch):
        logits = model.backbone(inputs_embeds=model.embed_tokens(ids[None], "content")).logits[0]
        log_p = torch.log_softmax(logits, -1)
        values.append(-sum(float(log_p[place - 1, ids[place]]) for place in range(prompt, len(ids))))
    return values


@torch.no_grad()
def distance(model: CLLM4RecForRecommendation, token: int) -> float:
    """||z_collaborative - z_content||^2 of one ID token."""
    index = token - model.config.id_offset
    if index < NUM_USERS:
        one, other = model.user_collaborative.weight[index], model.user_content.weight[index]
    else:
        one, other = model.item_collaborative.weight[index - NUM_USERS], model.item_content.weight[index - NUM_USERS]
    return float(((one - other) ** 2).sum())


def loop_mutual(model: CLLM4RecForRecommendation, ids: list[list[int]], distinct: bool = True) -> list[float]:
    rows = [set(row) if distinct else row for row in ids]
    return [sum(distance(model, token) for token in row if token >= model.config.id_offset) for row in rows]


def close(ours: torch.Tensor, theirs: list[float]) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=2e-5, atol=2e-5)


def test_next_item_equals_a_loop(model: CLLM4RecForRecommendation, interactions: Batch) -> None:
    terms = next_item_terms(model, interactions, RegularizationConfig())
    close(terms.nll, loop_next_item(model, interactions))
    close(terms.mutual, loop_mutual(model, interactions.input_ids.tolist()))
    assert terms.tokens == 4  # 3 and 1 items


def test_the_first_item_is_predicted(model: CLLM4RecForRecommendation, interactions: Batch) -> None:
    """A history of one item has a loss: -ln p(item | prompt), which the released code leaves out."""
    terms = next_item_terms(model, interactions, RegularizationConfig())
    hidden = states(model, interactions.input_ids[1, :3], "collaborative")[-1]  # the prompt alone
    log_p = torch.log_softmax(model.item_collaborative.weight @ hidden, -1)
    assert float(terms.nll[1]) == pytest.approx(-float(log_p[4]), rel=1e-5)
    assert float(terms.nll[1]) > 0.1


def test_next_word_equals_a_loop(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    terms = next_word_terms(model, texts, RegularizationConfig())
    close(terms.nll, loop_next_word(model, texts))
    close(terms.mutual, loop_mutual(model, texts.input_ids.tolist()))
    assert terms.tokens == 4 + 2 + 1


def test_the_first_word_is_predicted(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    terms = next_word_terms(model, texts, RegularizationConfig())
    logits = model.word_head(states(model, texts.input_ids[2, :3], "content")[-1])
    assert float(terms.nll[2]) == pytest.approx(-float(torch.log_softmax(logits, -1)[13]), rel=1e-5)


@pytest.mark.parametrize("average", [False, True])
def test_holdout_equals_a_loop(model: CLLM4RecForRecommendation, prompts: Batch, average: bool) -> None:
    assert prompts.targets is not None
    terms = holdout_terms(model, prompts, RegularizationConfig(), average=average)
    values, ids = [], []
    for (row, _), targets in zip(documents(prompts), prompts.targets, strict=True):
        log_p = torch.log_softmax(model.item_collaborative.weight @ states(model, row, "collaborative")[-1], -1)
        held = [int(one) for one in targets if one >= 0]
        value = -sum(float(log_p[one]) for one in held)
        values.append(value / len(held) if average else value)
        ids.append([*row.tolist(), *(item(model, one) for one in held)])
    close(terms.nll, values)
    close(terms.mutual, loop_mutual(model, ids))  # held-out items are also regularized
    assert terms.tokens == 4


@pytest.mark.parametrize("average", [False, True])
def test_a_teacher_adds_the_cross_entropy_with_its_shares(
    model: CLLM4RecForRecommendation, prompts: Batch, average: bool
) -> None:
    alone = holdout_terms(model, prompts, RegularizationConfig(), average=average)
    items = torch.tensor([[5, 0, 2], [3, -100, -100], [-100, -100, -100]])
    shares = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    taught = dataclasses.replace(prompts, soft_target_items=items, soft_target_probs=shares)
    both = holdout_terms(model, taught, RegularizationConfig(), average=average, teacher_weight=0.5)
    for number, (row, _) in enumerate(documents(prompts)):
        log_p = torch.log_softmax(model.item_collaborative.weight @ states(model, row, "collaborative")[-1], -1)
        chosen = [(one, share) for one, share in zip(items[number], shares[number], strict=True) if one >= 0]
        added = -0.5 * sum(float(share) * float(log_p[one]) for one, share in chosen)
        assert float(both.nll[number] - alone.nll[number]) == pytest.approx(added, rel=1e-4)
    close(both.mutual, alone.mutual.tolist())  # what a teacher names is not regularized
    assert both.tokens == alone.tokens


def test_holdout_without_targets(model: CLLM4RecForRecommendation, interactions: Batch) -> None:
    with pytest.raises(ValueError, match="needs a batch with targets"):
        holdout_terms(model, interactions, RegularizationConfig())


def test_padding_changes_nothing(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    wider = Batch(
        torch.nn.functional.pad(texts.input_ids, (0, 5)),
        torch.nn.functional.pad(texts.attention_mask, (0, 5)),
        texts.prompt_lengths,
    )
    plain, padded = (next_word_terms(model, batch, RegularizationConfig(lambda_l=1.0)) for batch in (texts, wider))
    for name in ("nll", "mutual", "prior"):
        close(getattr(padded, name), getattr(plain, name).tolist())
    assert padded.tokens == plain.tokens


def test_distinct_tokens_count_once_and_released_counts_each(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    """The first review names its item twice."""
    once = next_word_terms(model, texts, RegularizationConfig()).mutual
    each = next_word_terms(model, texts, RegularizationConfig(regularization="released")).mutual
    close(each, loop_mutual(model, texts.input_ids.tolist(), distinct=False))
    assert float(each[0] - once[0]) == pytest.approx(distance(model, item(model, 5)), rel=1e-4)
    close(each[1:], once[1:].tolist())


def test_prior_is_the_squared_norm_of_collaborative_rows_only(
    model: CLLM4RecForRecommendation, interactions: Batch, texts: Batch
) -> None:
    weights = RegularizationConfig(lambda_c=0.0, lambda_l=0.3)
    terms = next_item_terms(model, interactions, weights)
    users, items = (table.weight.square().sum(-1) for table in model.tables("collaborative"))
    close(terms.prior, [float(users[1] + items[[4, 0, 6]].sum()), float(users[2] + items[4])])
    assert terms.mutual.tolist() == [0.0, 0.0]
    # A content row's prior is N(z_collaborative, 1 / lambda_c): lambda_l does not pull it to zero.
    assert next_word_terms(model, texts, weights).prior.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("step", "fixture", "trained", "other"),
    [
        (next_item_terms, "interactions", "collaborative", "content"),
        (next_word_terms, "texts", "content", "collaborative"),
        (holdout_terms, "prompts", "collaborative", "content"),
    ],
)
def test_gradients_reach_the_trained_side_only(
    model: CLLM4RecForRecommendation,
    step: Callable[[CLLM4RecForRecommendation, Batch, RegularizationConfig], LossTerms],
    fixture: str,
    trained: Side,
    other: Side,
    request: pytest.FixtureRequest,
) -> None:
    batch = request.getfixturevalue(fixture)
    weights = RegularizationConfig(lambda_c=1.0, lambda_l=0.1)
    weights.total(step(model, batch, weights), len(batch.input_ids)).backward()
    for table in model.tables(other):
        assert table.weight.grad is None or not table.weight.grad.any()
    for table in model.tables(trained):
        assert table.weight.grad is not None
        assert table.weight.grad.isfinite().all()
        assert table.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_mutual_regularization_has_the_gradient_of_the_equation(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    """d/dz of lambda_c / 2 ||z - z^||^2 averaged over documents: lambda_c (z - z^) for each document that has the token."""
    terms = next_word_terms(model, texts, RegularizationConfig(lambda_c=0.7))
    (0.7 / 2 * terms.mutual.sum() / 3).backward()
    users, items = model.tables("content")
    assert items.weight.grad is not None and users.weight.grad is not None
    pull = 0.7 * (items.weight - model.item_collaborative.weight)
    close(items.weight.grad[5].double(), (pull[5] * 2 / 3).tolist())  # in two of three documents
    close(items.weight.grad[2], (pull[2] / 3).tolist())
    assert not items.weight.grad[[0, 1, 3, 4, 6]].any()
    assert not users.weight.grad[1].any()


def terms_by_hand() -> LossTerms:
    return LossTerms(torch.tensor([6.0, 2.0]), 4, torch.tensor([1.0, 3.0]), torch.tensor([10.0, 20.0]))


def test_paper_total_by_hand() -> None:
    """(6 + 2 + 0.5 / 2 (1 + 3) + 0.1 / 2 (10 + 20)) / 2 documents."""
    assert float(RegularizationConfig(0.5, 0.1).total(terms_by_hand(), 2)) == pytest.approx(5.25)


def test_released_total_by_hand() -> None:
    """Mean over 4 tokens, or over 2 users, plus lambda_c times the sum over the batch, without a half."""
    weights = RegularizationConfig(0.5, 0.0, "released")
    assert float(weights.total(terms_by_hand(), 2)) == pytest.approx(8 / 4 + 0.5 * 4)
    assert float(weights.total(terms_by_hand(), 2, main_is_words_or_items=False)) == pytest.approx(8 / 2 + 0.5 * 4)


def test_parts_of_a_step_add_up_to_the_average_over_its_documents(model: CLLM4RecForRecommendation, texts: Batch) -> None:
    weights = RegularizationConfig(lambda_c=0.7)
    whole = weights.total(next_word_terms(model, texts, weights), 3)
    parts = [Batch(texts.input_ids[part], texts.attention_mask[part], texts.prompt_lengths[part]) for part in ([0, 1], [2])]
    summed = sum(float(weights.total(next_word_terms(model, part, weights), 3)) for part in parts)
    assert summed == pytest.approx(float(whole), rel=1e-6)
    by_hand = sum(loop_next_word(model, texts)) + 0.7 / 2 * sum(loop_mutual(model, texts.input_ids.tolist()))
    assert float(whole) == pytest.approx(by_hand / 3, rel=1e-5)


def test_released_scaling_equals_its_description(model: CLLM4RecForRecommendation, interactions: Batch) -> None:
    """nll averaged over main tokens, and lambda * sum over batch, tokens and dimensions of the squared difference."""
    weights = RegularizationConfig(2.0, 0.0, "released")
    total = weights.total(next_item_terms(model, interactions, weights), 2)
    nll = sum(loop_next_item(model, interactions)) / 4
    mutual = sum(loop_mutual(model, interactions.input_ids.tolist(), distinct=False))
    assert float(total) == pytest.approx(nll + 2.0 * mutual, rel=1e-5)


@pytest.mark.parametrize("item_loss", ["chunked", "sampled"])
def test_other_item_losses_agree_on_a_small_catalogue(
    model: CLLM4RecForRecommendation, interactions: Batch, prompts: Batch, item_loss: str
) -> None:
    """A sample as large as the catalogue estimates nothing: it equals the exact softmax."""
    generator = torch.Generator().manual_seed(0)
    for step, batch in ((next_item_terms, interactions), (holdout_terms, prompts)):
        exact = step(model, batch, RegularizationConfig())
        other = step(model, batch, RegularizationConfig(), item_loss, generator)  # type: ignore[arg-type]
        close(other.nll, exact.nll.tolist())


def test_sampled_without_a_generator(model: CLLM4RecForRecommendation, interactions: Batch) -> None:
    with pytest.raises(ValueError, match="give a generator"):
        next_item_terms(model, interactions, RegularizationConfig(), "sampled")
