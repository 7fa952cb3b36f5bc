"""What a step reads: the plans of both stages, masking, dropped user tokens, and validation against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from modeling_cllm4rec.cllm4rec.arguments import FinetuneArguments, PretrainArguments
from modeling_cllm4rec.cllm4rec.finetuning import FinetuningStage, load_start
from modeling_cllm4rec.cllm4rec.pretraining import PretrainingStage, new_model
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.training.stages import Step, part_loss

MakePretrain = Callable[..., PretrainArguments]
MakeFinetune = Callable[..., FinetuneArguments]


def pretraining(arguments: PretrainArguments, data: RecommendationData) -> PretrainingStage:
    return PretrainingStage(*new_model(data, arguments), data, arguments)


def finetuning(arguments: FinetuneArguments, data: RecommendationData) -> FinetuningStage:
    model, tokenizer = load_start(arguments, data)
    return FinetuningStage(model, tokenizer, data, arguments)


def documents(steps: list[Step], kind: str) -> list[int]:
    return [int(one) for step in steps if step.kind == kind for one in step.documents]


# ---- pretraining ----


def test_a_warm_up_epoch_reads_each_text_once(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    stage = pretraining(pretrain_arguments(warmup_epochs=2, num_train_epochs=3), data)
    assert stage.num_epochs == 5
    for epoch in (0, 1):
        steps = stage.steps(epoch)
        assert {step.kind for step in steps} == {"content"}
        assert sorted(documents(steps, "content")) == stage.text_train.tolist()


def test_an_alternating_epoch_reads_all_histories_then_a_share_of_the_texts(
    pretrain_arguments: MakePretrain, data: RecommendationData
) -> None:
    stage = pretraining(pretrain_arguments(content_share=0.3, per_device_train_batch_size=16), data)
    steps = stage.steps(1)
    kinds = [step.kind for step in steps]
    assert kinds == sorted(kinds)  # collaborative, then content
    assert sorted(documents(steps, "collaborative")) == list(range(data.num_users))
    batches = int(np.ceil(len(stage.text_train) / 16))
    assert kinds.count("content") == int(np.ceil(0.3 * batches))
    assert set(documents(steps, "content")) < set(stage.text_train.tolist())
    assert documents(steps, "content") != documents(stage.steps(2), "content")
    again = stage.steps(1)
    assert all(np.array_equal(one.documents, other.documents) for one, other in zip(steps, again, strict=True))


def test_texts_kept_for_validation_are_not_trained_on(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    stage = pretraining(pretrain_arguments(text_validation_share=0.25), data)
    held, train = set(stage.text_validation.tolist()), set(stage.text_train.tolist())
    assert len(held) == int(np.ceil(0.25 * len(stage.texts)))
    assert held.isdisjoint(train)
    assert held | train == set(range(len(stage.texts)))


def test_the_warm_up_has_no_regularization(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    values: dict[tuple[float, int], float] = {}
    for lambda_c in (0.0, 1.0):
        stage = pretraining(pretrain_arguments(lambda_c=lambda_c, init_ids="random"), data)
        stage.model.eval()
        part = stage.text_train[:8]
        for epoch in (0, 1):
            values[lambda_c, epoch] = part_loss(stage, Step("content", part), epoch=epoch).loss.item()
    assert values[0.0, 0] == values[1.0, 0] == values[0.0, 1]
    assert values[1.0, 1] > values[0.0, 1]


@pytest.mark.parametrize("kind", ["collaborative", "content"])
@torch.no_grad()
def test_parts_of_a_step_add_up(kind: str, pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    """Loss, nats and tokens of a step do not depend on how it is cut into parts."""
    stage = pretraining(pretrain_arguments(), data)
    stage.model.eval()
    step = Step(kind, np.arange(12))
    whole = part_loss(stage, step, epoch=1)
    parts = [part_loss(stage, step, part, epoch=1) for part in np.array_split(step.documents, 5)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-5)
    assert sum(part.nll.item() for part in parts) == pytest.approx(whole.nll.item(), rel=1e-5)
    assert sum(int(part.tokens) for part in parts) == whole.tokens


@torch.no_grad()
def test_item_validation_equals_a_loop(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    stage = pretraining(pretrain_arguments(init_ids="random"), data)
    model = stage.model.eval()
    train, held = data.histories("train"), data.histories("validation")
    first_user = model.config.id_offset
    tokenizer = new_model(data, stage.arguments)[1]
    nll, count = 0.0, 0
    for user in range(data.num_users):
        items = train.items[train.indptr[user] : train.indptr[user + 1]]
        text = f"<user_{user}> chose: " + " ".join(f"<item_{item}>" for item in items)
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert ids[1] == first_user + user
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for item in held.items[held.indptr[user] : held.indptr[user + 1]]:
            nll, count = nll - log_p[int(item)].item(), count + 1
    metrics = stage.validate(1)
    assert metrics["validation/item_nll"] == pytest.approx(nll / count, rel=1e-5)
    assert metrics["selection"] == -metrics["validation/item_nll"]
    assert "selection" not in stage.validate(0)  # the warm-up trains no collaborative rows: it is never the best epoch


def test_long_histories_keep_their_last_items(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    stage = pretraining(pretrain_arguments(max_history_tokens=9, reorder=False), data)
    user = int(np.argmax(stage.histories.lengths))
    history = stage.histories.rows(np.array([user]))
    batch = stage._interactions(np.array([user]), history)
    assert batch.input_ids.shape[1] == 9
    first_item = stage.model.config.id_offset + data.num_users
    kept = batch.input_ids[0, batch.prompt_lengths[0] :] - first_item
    assert kept.tolist() == history[0][-len(kept) :].tolist()


def test_a_context_that_holds_no_item(pretrain_arguments: MakePretrain, data: RecommendationData) -> None:
    stage = pretraining(pretrain_arguments(max_history_tokens=2), data)
    with pytest.raises(ValueError, match="words take .* tokens and the context holds 2: no item of the history fits"):
        part_loss(stage, Step("collaborative", np.arange(4)), epoch=1)


# ---- finetuning ----


@pytest.mark.parametrize(
    ("every", "kinds"),
    [(0, "rrrr"), (1, "rcrcrcrc"), (2, "rrcrrc"), (3, "rrrcr"), (9, "rrrr")],
)
def test_content_steps_come_between_recommendation_steps(
    every: int, kinds: str, finetune_arguments: MakeFinetune, data: RecommendationData
) -> None:
    stage = finetuning(finetune_arguments(content_every=every), data)
    steps = stage.steps(0)
    assert "".join(step.kind[0] for step in steps) == kinds
    assert sorted(documents(steps, "recommendation")) == list(range(data.num_users))
    content = documents(steps, "content")
    assert len(set(content)) == len(content)


def test_what_is_predicted(finetune_arguments: MakeFinetune, data: RecommendationData) -> None:
    users = np.arange(data.num_users)
    holdout = finetuning(finetune_arguments(mask_share=0.4), data)
    kept, held = holdout._masked(users, 3)
    for user in users:
        history = holdout.histories.rows(np.array([user]))[0]
        assert len(held[user]) == max(1, int(0.4 * len(history)))
        assert sorted([*kept[user], *held[user]]) == sorted(history)
    everything = finetuning(finetune_arguments(mask_share=0.4, target="all"), data)
    same_kept, targets = everything._masked(users, 3)
    for user in users:
        assert same_kept[user].tolist() == kept[user].tolist()
        assert targets[user].tolist() == everything.histories.rows(np.array([user]))[0].tolist()


def test_user_tokens_are_dropped_with_the_probability_asked_for(
    finetune_arguments: MakeFinetune, data: RecommendationData
) -> None:
    histories = finetuning(finetune_arguments(), data).histories
    users = np.arange(data.num_users)
    assert histories.user_tokens(users, 0, 0.0).tolist() == users.tolist()
    assert set(histories.user_tokens(users, 0, 1.0)) == {-1}
    dropped = np.mean([histories.user_tokens(users, epoch, 0.3) == -1 for epoch in range(50)])
    assert dropped == pytest.approx(0.3, abs=0.03)
    whole = histories.user_tokens(users, 7, 0.3)  # independent of who else is in the batch
    assert [int(histories.user_tokens(users[[user]], 7, 0.3)[0]) for user in users] == whole.tolist()


def test_histories_may_include_validation(finetune_arguments: MakeFinetune, data: RecommendationData) -> None:
    stage = finetuning(finetune_arguments(train_on="train+validation"), data)
    assert stage.histories.lengths.sum() == len(data.histories("train", "validation").items)
    assert finetuning(finetune_arguments(), data).histories.lengths.sum() == len(data.histories("train").items)


def test_a_history_of_one_item_is_held_out_whole(finetune_arguments: MakeFinetune, data: RecommendationData) -> None:
    """Nothing is left to read: the prompt has the user's token and no item, and the loss is finite."""
    stage = finetuning(finetune_arguments(drop_user=0.0), data)
    one = stage.histories.histories._replace(indptr=np.arange(data.num_users + 1), items=np.zeros(data.num_users, np.int32))
    stage.histories.histories = one
    part = np.arange(3)
    output = part_loss(stage, Step("recommendation", part))
    assert output.loss.isfinite() and output.nll > 0
    assert output.tokens == 3
