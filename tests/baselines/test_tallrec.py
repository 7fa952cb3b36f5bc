"""The text-only row: what is asked, that sharing the history's cache changes no score, what is learned, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.tallrec import TALLRecRecommender, training_examples
from modeling_cllm4rec.baselines.yes_no_prompts import YesNoPrompts
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

QUICK = {"positives": 24, "epochs": 1, "max_history": 2, "max_title_tokens": 6, "progress": False}
TITLES = ["red lamp", "green tea and a very long rest of its title", "blue chair", "a"]


def make(folder: Path, titles: list[str] | None = None, **settings: Any) -> TALLRecRecommender:
    """With the backbone's own weights."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = YesNoPrompts(tokenizer, titles or TITLES, max_history=2, max_title_tokens=6, context_length=128)
    return TALLRecRecommender(AutoModelForCausalLM.from_pretrained(folder).eval(), prompts, progress=False, **settings)


@torch.no_grad()
def plain_scores(recommender: TALLRecRecommender, history: list[int]) -> list[float]:
    """Score a whole prompt for each item, without any cache."""
    prompts, found = recommender.prompts, []
    for item in range(recommender.num_items):
        ids = np.concatenate([prompts.prefix(np.array(history, dtype=np.int64)), prompts.suffix(item)])
        logits = recommender.language_model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
        found.append(float(logits.log_softmax(0)[prompts.answers[0]] - logits.log_softmax(0)[prompts.answers[1]]))
    return found


@pytest.mark.parametrize("candidates_at_once", [1, 3, 64])
@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen2"])
def test_a_shared_history_scores_as_whole_prompts_do(
    backbone: str, candidates_at_once: int, tiny_backbones: dict[str, Path]
) -> None:
    recommender = make(tiny_backbones[backbone], candidates_at_once=candidates_at_once)
    rows = [[0, 1, 3], [], [2]]
    scores = recommender.score_histories(None, histories_from_lists(rows))
    assert scores == pytest.approx(np.array([plain_scores(recommender, row) for row in rows]), abs=1e-4)
    assert np.ptp(scores[0]) > 1e-3, "titles matter"


def test_what_is_asked(tiny_backbones: dict[str, Path]) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    prompts = YesNoPrompts(tokenizer, TITLES, max_history=2, max_title_tokens=1000, context_length=1000)
    whole = np.concatenate([prompts.prefix(np.array([1, 0, 2])), prompts.suffix(3)])
    assert tokenizer.decode(whole) == (
        "<|endoftext|>A customer chose these products, the oldest first:\n- red lamp\n- blue chair\n"
        "Would the same customer choose this product next?\n- a\nAnswer Yes or No:\n"
    )
    yes, no = (tokenizer.decode([token]) for token in prompts.answers)
    assert "Yes".startswith(yes) and "No".startswith(no)


def test_long_titles_are_cut(tiny_backbones: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    whole, cut = (
        YesNoPrompts(tokenizer, TITLES, max_history=1, max_title_tokens=number, context_length=1000) for number in (1000, 3)
    )
    bullet, line = (tokenizer(text)["input_ids"] for text in ("- ", "\n"))
    assert cut.lines[1].tolist() == [*bullet, *tokenizer(TITLES[1])["input_ids"][:3], *line]
    assert whole.lines[1].tolist() == [*bullet, *tokenizer(TITLES[1])["input_ids"], *line]


def test_only_candidates_are_scored(tiny_backbones: dict[str, Path]) -> None:
    recommender = make(tiny_backbones["gpt2"])
    histories = histories_from_lists([[0], [1, 2]])
    every = recommender.score_histories(None, histories)
    some = recommender.score_candidates(None, histories, histories_from_lists([[3, 1], [0]]))
    assert np.isneginf(some).tolist() == [[True, False, True, False], [False, True, True, True]]
    assert some[0, [1, 3]] == pytest.approx(every[0, [1, 3]], abs=1e-5) and some[1, 0] == pytest.approx(every[1, 0], abs=1e-5)


def test_questions_of_an_epoch() -> None:
    histories = histories_from_lists([[4, 2, 7], [1], [], [0, 5]])
    examples = training_examples(histories, 9, positives=99, negatives=2, seed=1, epoch=0)
    assert examples.labels.tolist() == [1.0] * 3 + [0.0] * 6
    drawn = list(zip(examples.users.tolist(), examples.lengths.tolist(), examples.items.tolist(), strict=True))
    assert drawn[:3] == [(0, 1, 2), (0, 2, 7), (3, 1, 5)]
    assert [row[:2] for row in drawn[3:]] == [(0, 1), (0, 1), (0, 2), (0, 2), (3, 1), (3, 1)]
    assert not {item for user, _, item in drawn[3:] if user == 0} & {4, 2, 7}
    again, other = (training_examples(histories, 9, positives=2, negatives=1, seed=1, epoch=epoch) for epoch in (0, 3))
    assert len(again.items) == 4 and again.items.tolist() != other.items.tolist()


@pytest.fixture
def lamps(tmp_path: Path) -> RecommendationData:
    """Forty users who choose lamps and never a chair; items 0 to 9 are lamps."""
    generator = np.random.default_rng(0)
    pairs = [(user, item) for user in range(40) for item in generator.choice(10, 5, replace=False)]
    pairs += [(40, item) for item in range(20)]  # each item is chosen by some user
    interactions = pa.table({"user_id": [pair[0] for pair in pairs], "item_id": [int(pair[1]) for pair in pairs]})
    titles = [f"{kind} {number}" for kind in ("red lamp", "blue chair") for number in range(10)]
    items = pa.table({"item_id": range(20), "title": titles})
    prepare_tables(interactions, items, None, tmp_path / "lamps", split="random", seed=0)
    return RecommendationData.load(tmp_path / "lamps")


def test_it_learns_which_titles_are_chosen(lamps: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    settings: dict[str, Any] = {**QUICK, "backbone": str(tiny_backbones["llama"]), "positives": 128, "lr": 1e-2, "epochs": 3}
    trained = fit_baseline("tallrec", lamps, seed=1, **settings)
    assert isinstance(trained, TALLRecRecommender)
    assert trained.losses[-1] < trained.losses[0] - 0.05
    assert not any("lora" in name for name, _ in trained.language_model.named_parameters()), "merged"
    scores = trained.score_histories(None, histories_from_lists([[3, 1]]))[0]
    ids = lamps.items["item_id"].to_numpy()
    assert scores[ids < 10].mean() > scores[ids >= 10].mean() + 0.3


def test_it_trains_as_a_plain_loop(data: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    """LoRA on the answer's two logits after whole prompts; batches by length; the mean over prompts of each epoch."""
    histories, folder = data.histories("train"), tiny_backbones["gpt2"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    titles = data.items["title"].to_pylist()
    prompts = YesNoPrompts(tokenizer, titles, max_history=2, max_title_tokens=6, context_length=128)
    yes, no = prompts.answers
    torch.manual_seed(3)
    peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    model.train()
    means = []
    for epoch in range(2):
        users, lengths, items, labels = training_examples(histories, data.num_items, 24, 1, 3, epoch)
        rows = []
        for user, length, item in zip(users, lengths, items, strict=True):
            before = histories.items[histories.indptr[user] :][:length]
            rows.append(torch.from_numpy(np.concatenate([prompts.prefix(before), prompts.suffix(int(item))])))
        total = 0.0
        for batch in plan_batches(np.array([len(row) for row in rows]), 16, 3, epoch):
            ids = torch.nn.utils.rnn.pad_sequence([rows[row] for row in batch], True)
            last = torch.tensor([len(rows[row]) - 1 for row in batch])
            mask = (torch.arange(ids.shape[1]) <= last[:, None]).long()
            logits = model(input_ids=ids, attention_mask=mask).logits[torch.arange(len(batch)), last]
            answers = torch.from_numpy(labels[batch])
            loss = F.binary_cross_entropy_with_logits(logits[:, yes] - logits[:, no], answers)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            total += loss.item() * len(batch)
        means.append(total / len(rows))
    settings: dict[str, Any] = {**QUICK, "backbone": str(folder), "lr": 0.01, "epochs": 2}
    fitted = fit_baseline("tallrec", data, seed=3, **settings)
    assert isinstance(fitted, TALLRecRecommender)
    assert fitted.losses == pytest.approx(means, rel=1e-6)


def test_seeds(data: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
    settings: dict[str, Any] = {**QUICK, "backbone": str(tiny_backbones["gpt2"]), "lr": 1e-2}
    histories = histories_from_lists([[3, 1]])
    one, same, other = (fit_baseline("tallrec", data, seed=n, **settings).score_histories(None, histories) for n in (2, 2, 3))
    assert (one == same).all() and not np.allclose(one, other, atol=1e-4)


class TestBadInput:
    def test_no_backbone(self, data: RecommendationData, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="tallrec: backbone is not set; name a causal language model"):
            fit_baseline("tallrec", data)
        with pytest.raises(FileNotFoundError, match="backbone: .*nowhere is no folder with a language model"):
            fit_baseline("tallrec", data, backbone=str(tmp_path / "nowhere"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"negatives": 0}, "negatives is 0; it must be 1 or more"),
            ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
            ({"max_hours": 0.0}, "max_hours is 0.0; it must be above 0"),
            (
                {"max_history": 50},
                "a prompt of 50 titles and a candidate may take [0-9]+ tokens, but the backbone's context has 128",
            ),
            ({"precision": "fp8"}, "precision is 'fp8'; allowed are 'no' and 'bf16'"),
        ],
    )
    def test_settings(
        self, data: RecommendationData, tiny_backbones: dict[str, Path], changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            fit_baseline("tallrec", data, **{**QUICK, "backbone": str(tiny_backbones["gpt2"]), **changes})

    def test_an_evaluation_that_would_take_too_long(self, data: RecommendationData, tiny_backbones: dict[str, Path]) -> None:
        settings: dict[str, Any] = {**QUICK, "backbone": str(tiny_backbones["gpt2"])}
        refused = r"1000000000 pairs of a history and an item at [0-9.]+ ms each take about .* hours, more than max_hours \(6\)"
        with pytest.raises(ValueError, match=refused):
            fit_baseline("tallrec", data, planned_pairs=10**9, **settings)
        slow = make(tiny_backbones["gpt2"], max_hours=1e-9)
        with pytest.raises(ValueError, match="more than max_hours .*rank fewer users"):
            slow.score_histories(None, histories_from_lists([[0]] * 400))
        slow.score_histories(None, histories_from_lists([[0]]))  # few pairs are never refused

    def test_cost_without_a_limit_is_logged(self, tiny_backbones: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
        recommender = make(tiny_backbones["gpt2"], max_hours=None)
        recommender.check_cost(10**7, histories_from_lists([[0], []]))
        assert "10000000 pairs of a history and an item at" in caplog.text

    def test_nobody_has_a_next_item(self) -> None:
        with pytest.raises(ValueError, match="no user has two training items"):
            training_examples(histories_from_lists([[1], []]), 5, 3, 1, 0, 0)
        with pytest.raises(ValueError, match="user 0 has all 2 items"):
            training_examples(histories_from_lists([[1, 0]]), 2, 3, 1, 0, 0)

    def test_answers_that_begin_alike(self, tiny_backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modeling_cllm4rec.baselines.yes_no_prompts.NO", "Yet")
        with pytest.raises(ValueError, match="the tokenizer encodes Yes as .* with the same first token; choose a backbone"):
            make(tiny_backbones["gpt2"])

    def test_candidates_of_another_catalogue(self, tiny_backbones: dict[str, Path]) -> None:
        with pytest.raises(ValueError, match="item indices from 4 to 4, but the baseline was fitted on items 0 to 3"):
            make(tiny_backbones["gpt2"]).score_candidates(None, histories_from_lists([[0]]), histories_from_lists([[4]]))
