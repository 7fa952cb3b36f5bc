"""Mult-VAE and SASRec: what they compute, against second implementations, and how they stop."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.baselines.early_stopping import Stopping, train_until_best
from modeling_cllm4rec.baselines.multvae import MultVAE, negative_elbo
from modeling_cllm4rec.baselines.sasrec import (
    IGNORE_INDEX,
    LiGRBlock,
    SASRec,
    SASRecRecommender,
    inclusion_probabilities,
    reordered,
    sampled_nll,
    training_segments,
)
from modeling_cllm4rec.core.losses import multinomial_nll
from modeling_cllm4rec.corpora.batches import plan_batches
from modeling_cllm4rec.corpora.history_order import UnorderedHistoriesWarning
from modeling_cllm4rec.corpora.text_vectors import text_vectors, whitened_rows
from modeling_cllm4rec.evaluation.evaluator import select_users
from modeling_cllm4rec.evaluation.ranking import histories_from_lists

SASREC = {"num_items": 12, "size": 16, "layers": 2, "heads": 2, "dropout": 0.5, "max_length": 6}
ESASREC_AS_SASREC = {"block": "transformer", "temperature": 0.07}
VAE = {"hidden_size": 32, "latent_size": 16}


# The small world is split at random, of which SASRec warns; two tests check that.
pytestmark = pytest.mark.filterwarnings("ignore::modeling_cllm4rec.corpora.history_order.UnorderedHistoriesWarning")


@pytest.fixture(params=[(None, "transformer"), (0.1, "transformer"), (None, "ligr")], ids=["dot product", "cosine", "gated"])
def sasrec(request):
    torch.manual_seed(0)
    temperature, block = request.param
    return SASRec(**SASREC, temperature=temperature, block=block).eval()


def test_sasrec_never_looks_ahead(sasrec):
    items = torch.randint(12, (3, 6))
    changed = items.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 12
    before, after = sasrec(items), sasrec(changed)
    assert before.shape == (3, 7, 16)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all(), "but it looks back"


def test_one_pass_predicts_all_that_single_passes_do(sasrec):
    items = torch.randint(12, (2, 6))
    whole = sasrec(items)
    for length in range(7):
        assert torch.allclose(whole[:, length], sasrec(items[:, :length])[:, -1], atol=1e-5)


def test_padding_changes_nothing(sasrec):
    items = torch.tensor([[3, 1, IGNORE_INDEX, IGNORE_INDEX]])
    assert torch.allclose(sasrec(items)[:, :3], sasrec(items[:, :2]), atol=1e-5)


def test_cosine_ignores_the_length_of_item_rows():
    model = SASRec(**SASREC, temperature=0.1).eval()
    assert torch.allclose(model.item_table().norm(dim=1), torch.ones(12))
    assert torch.equal(model.item_rows(torch.tensor([5, 2])), model.item_table()[[5, 2]])
    assert torch.allclose(model(torch.tensor([[1, 2]])).norm(dim=-1), torch.full((1, 3), 10.0), atol=1e-4)


def test_sampling_every_item_is_the_full_softmax():
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True), torch.arange(7)
    probabilities = torch.from_numpy(inclusion_probabilities(np.arange(9), num_samples=9, power=0.5))
    sampled = sampled_nll(hidden, table.__getitem__, targets, probabilities, torch.Generator())
    full = F.cross_entropy(hidden @ table.T, targets, reduction="none")
    assert torch.allclose(sampled, full, atol=1e-5)
    assert torch.allclose(multinomial_nll(hidden, table, targets[:, None]), full, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss.sum(), (hidden, table)) for loss in (sampled, full)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_sampled_denominator_has_the_right_mean(power):
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(2, 4), torch.randn(30, 4), torch.tensor([3, 8])
    probabilities = torch.from_numpy(inclusion_probabilities(np.arange(30) ** 2, num_samples=10, power=power))
    generator = torch.Generator().manual_seed(1)
    own = (hidden * table[targets]).sum(1)
    losses = torch.stack([sampled_nll(hidden, table.__getitem__, targets, probabilities, generator) for _ in range(3000)])
    estimates = (losses + own).exp()
    exact = (hidden @ table.T).exp().sum(1)
    error = estimates.std(0) / 3000**0.5
    assert ((estimates.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_samples", [1, 7, 49, 50, 500])
def test_probabilities_sum_to_the_sample(power, num_samples):
    counts = np.random.default_rng(0).zipf(1.5, 50)
    probabilities = inclusion_probabilities(counts, num_samples, power)
    assert probabilities.sum() == pytest.approx(min(num_samples, 50), rel=1e-5)
    assert (probabilities > 0).all() and (probabilities <= 1).all()
    assert (np.diff(probabilities[np.argsort(counts)]) >= 0).all()


def test_long_histories_are_cut_into_pieces():
    histories = histories_from_lists([[1, 2, 3, 4, 5], [], [6, 7]])
    assert [segment.tolist() for segment in training_segments(histories, 2)] == [[4, 5], [2, 3], [1], [6, 7]]
    assert [segment.tolist() for segment in training_segments(histories, 9)] == [[1, 2, 3, 4, 5], [6, 7]]


def test_sasrec_reads_the_last_items(data):
    recommender = fit_baseline("sasrec", data, size=8, heads=1, layers=1, max_length=3, epochs=1, progress=False)
    long, short = (recommender.score_histories(None, histories_from_lists([row])) for row in ([9, 8, 1, 2, 3], [1, 2, 3]))
    assert (long == short).all()


def test_the_losses_of_sasrec_agree(data):
    shared = {"size": 8, "heads": 1, "layers": 1, "dropout": 0.0, "epochs": 2, "progress": False}
    histories = data.histories("train")
    full = fit_baseline("sasrec", data, **shared).score_histories(None, histories)
    sampled = fit_baseline("esasrec", data, **{**ESASREC_AS_SASREC, **shared}, num_samples=data.num_items)
    assert sampled.score_histories(None, histories) == pytest.approx(full, abs=1e-3)
    chunked = fit_baseline("sasrec", data, chunk_size=7, **shared)
    assert chunked.score_histories(None, histories) == pytest.approx(full, abs=1e-3)


def test_a_gated_block_by_hand():
    """Two gated residuals: attention, then SwiGLU, each of the normalized state (eq. 1 to 4 of LiGR)."""
    torch.manual_seed(0)
    block = LiGRBlock(size=6, heads=1, dropout=0.5).eval()
    states = torch.randn(2, 4, 6)
    mask = torch.full((4, 4), float("-inf")).triu(1)
    given = F.layer_norm(states, (6,))
    query, key, value = F.linear(given, block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, -1)
    attended = (query @ key.mT / 6**0.5 + mask).softmax(-1) @ value
    attended = F.linear(attended, block.attention.out_proj.weight, block.attention.out_proj.bias)
    gate = torch.sigmoid(states @ block.attention_gate.weight.T + block.attention_gate.bias)
    middle = states + gate * attended
    given = F.layer_norm(middle, (6,))
    inner = (F.silu(given @ block.gate.weight.T) * (given @ block.up.weight.T)) @ block.down.weight.T
    wanted = middle + torch.sigmoid(middle @ block.feed_forward_gate.weight.T + block.feed_forward_gate.bias) * inner
    assert torch.allclose(block(states, src_mask=mask, is_causal=True), wanted, atol=1e-5)


def test_item_rows_start_from_texts(data):
    """The rows are whitened text vectors times the usual deviation; after a tiny step they are still near them."""
    shared = {"size": 4, "epochs": 1, "lr": 1e-9, "progress": False}
    fitted = fit_baseline("sasrec", data, item_rows="text", fields=["title"], **shared)
    wanted = 0.02 * whitened_rows(text_vectors(data, fields=["title"]), 4, seed=0)
    assert fitted.module.items.weight.detach().numpy() == pytest.approx(wanted, abs=1e-6)
    random = fit_baseline("sasrec", data, **shared).module.items.weight
    rows = wanted.copy()
    rows[3] = 0
    module = SASRec(**{**SASREC, "num_items": data.num_items, "size": 4})
    before = module.items.weight.detach().clone()
    module.start_from(rows / 0.02)
    assert torch.equal(module.items.weight[3], before[3]) and not torch.equal(module.items.weight[2], before[2])
    assert random.std().item() == pytest.approx(0.02, rel=0.3)


def test_histories_are_shuffled_where_their_order_means_nothing(data):
    shared = {"size": 8, "epochs": 2, "progress": False}
    with pytest.warns(UnorderedHistoriesWarning, match="SASRec shuffles them in each epoch; reorder=True does so"):
        chosen = fit_baseline("sasrec", data, **shared)
    histories = data.histories("train")
    shuffled = fit_baseline("sasrec", data, reorder=True, **shared)
    assert (chosen.score_histories(None, histories) == shuffled.score_histories(None, histories)).all()
    with pytest.warns(UnorderedHistoriesWarning, match="SASRec reads it with reorder=False"):
        read = fit_baseline("sasrec", data, reorder=False, **shared)
    assert (read.score_histories(None, histories) != shuffled.score_histories(None, histories)).any()


def test_an_order_that_means_something_is_read(data, recwarn):
    shared = {"size": 8, "epochs": 1, "progress": False}
    ordered = dataclasses.replace(data, info={**data.info, "protocol": {**data.info["protocol"], "split": "leave-one-out"}})
    chosen = fit_baseline("sasrec", ordered, **shared)
    assert not [one for one in recwarn.list if one.category is UnorderedHistoriesWarning]
    read = fit_baseline("sasrec", data, reorder=False, **shared)
    histories = data.histories("train")
    assert (chosen.score_histories(None, histories) == read.score_histories(None, histories)).all()


def test_reordering_keeps_the_items_of_each_history():
    histories = histories_from_lists([[5, 6, 7, 8], [], [1, 2]])
    orders = {tuple(reordered(histories, seed=0, epoch=epoch).items.tolist()) for epoch in range(50)}
    assert len(orders) > 20
    assert {(frozenset(order[:4]), frozenset(order[4:])) for order in orders} == {(frozenset([5, 6, 7, 8]), frozenset([1, 2]))}
    assert reordered(histories, 3, 4).items.tolist() == reordered(histories, 3, 4).items.tolist()


def test_bf16_is_near_32_bits(data):
    shared = {"size": 16, "heads": 1, "layers": 1, "dropout": 0.0, "temperature": None, "epochs": 1, "progress": False}
    histories = data.histories("train")
    exact, rounded = (
        fit_baseline("sasrec", data, precision=precision, **shared).score_histories(None, histories)
        for precision in ("no", "bf16")
    )
    assert rounded == pytest.approx(exact, abs=0.05) and (rounded != exact).any()


def test_multvae_against_dense_matrices():
    """The sparse first layer is a product with the normalized multi-hot rows; the loss is eq. 5 of the paper."""
    torch.manual_seed(0)
    model = MultVAE(6, hidden_size=5, latent_size=3, dropout=0.0).eval()
    model.item_bias.data.normal_()
    histories = histories_from_lists([[0, 4], [], [5, 1, 2]])
    dense = torch.zeros(3, 6)
    dense[0, [0, 4]] = dense[2, [5, 1, 2]] = 1
    hidden = torch.tanh(F.normalize(dense) @ model.item_rows + model.item_bias)
    mean, log_variance = model.encoder(hidden).chunk(2, dim=1)
    logits = model.decoder(mean)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    expected = (-(dense * logits.log_softmax(1)).sum(1) + 0.3 * divergence).mean()
    assert negative_elbo(model, histories, 0.3).item() == pytest.approx(expected.item(), rel=1e-5)
    items, starts = torch.from_numpy(histories.items.astype(np.int64)), torch.from_numpy(histories.indptr[:-1])
    assert torch.allclose(model(items, starts)[0], logits, atol=1e-5)


class Scripted:
    """Validates as given; its only weight counts the optimizer's steps."""

    def __init__(self, num_items, ranks):
        self.num_items = num_items
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.module.weight.data.zero_()
        self.ranks = ranks

    def batches(self, epoch):
        self.epoch = epoch
        yield {"epoch": epoch}

    def loss(self, epoch):
        return self.module.weight.sum() * -1.0

    def train(self, data, stopping):
        return train_until_best(
            *(self, self.module, data, self.batches, self.loss, stopping), steps_per_epoch=1, lr=1.0, title="", progress=False
        )

    def score_histories(self, users, histories):
        scores = np.zeros((len(users), self.num_items), dtype=np.float32)
        scores[:, : self.ranks[self.epoch]] = 1  # as many items rank before the rest
        return scores


def test_the_best_weights_are_kept(data):
    scripted = Scripted(data.num_items, ranks=[0, 30, 5, 0, 0, 0])
    truth = data.histories("validation").items
    assert (truth < 30).any()
    validations = scripted.train(data, Stopping(6, 2, 1, "recall@30", None))
    best = max(validations, key=lambda validation: validation.metric)
    assert len(validations) == min(6, best.epoch + 2), "stops two validations after the best"
    assert scripted.module.weight.item() == pytest.approx(best.epoch, abs=0.1), "one step of size 1 an epoch"
    assert not scripted.module.training


def test_validation_every_second_epoch_and_at_the_end(data):
    scripted = Scripted(data.num_items, ranks=[3] * 5)
    validations = scripted.train(data, Stopping(5, 0, 2, "recall@5", 10))
    assert [validation.epoch for validation in validations] == [2, 4, 5]


def plain_loop(module, losses, lr):
    """Train as the baselines do, and return the mean loss of each epoch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    means = []
    for epoch in range(2):
        seen = []
        for loss in losses(epoch):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
            seen.append(loss.item())
        means.append(np.mean(seen))
    return means


def check_training(fitted, module, means):
    assert [validation.loss for validation in fitted.validations] == pytest.approx(means, rel=1e-6)
    last = max(fitted.validations, key=lambda validation: validation.metric).epoch == 2
    for name, weight in fitted.module.state_dict().items() if last else ():
        assert torch.allclose(weight, module.state_dict()[name], rtol=1e-5, atol=1e-7), name


def test_multvae_trains_as_a_plain_loop(data):
    histories = data.histories("train")
    users = np.flatnonzero(np.diff(histories.indptr))
    torch.manual_seed(4)
    module = MultVAE(data.num_items, 32, 16, dropout=0.5)

    def losses(epoch):
        order = np.random.default_rng((4, epoch)).permutation(users)
        for number, start in enumerate(range(0, len(users), 16)):
            weight = 0.2 * (epoch + number / -(-len(users) // 16)) / 50
            yield negative_elbo(module, select_users(histories, order[start : start + 16]), weight)

    means = plain_loop(module, losses, lr=0.01)
    fitted = fit_baseline("multvae", data, seed=4, batch_size=16, lr=0.01, epochs=2, progress=False, **VAE)
    check_training(fitted, module, means)


@pytest.mark.parametrize("name", ["sasrec", "esasrec"])
def test_sasrec_trains_as_a_plain_loop(data, name):
    shape = {"size": 8, "layers": 1, "heads": 1, "dropout": 0.3, "max_length": 6}
    segments = training_segments(data.histories("train"), 6)
    counts = np.bincount(data.histories("train").items, minlength=data.num_items)
    probabilities = torch.from_numpy(inclusion_probabilities(counts, 9, 0.5))
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    module = SASRec(data.num_items, **shape, temperature=0.1)

    def losses(epoch):
        for batch in plan_batches(np.array([len(one) for one in segments]), 16, 4, epoch):
            items = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(segments[row]) for row in batch], True, IGNORE_INDEX)
            given = items >= 0
            states, targets = module(items[:, :-1])[given], items[given]
            if name == "sasrec":
                yield F.cross_entropy(states @ module.item_table().T, targets)
            else:
                yield sampled_nll(states, module.item_rows, targets, probabilities, generator).mean()

    means = plain_loop(module, losses, lr=0.01)
    settings = {**shape, "temperature": 0.1, "reorder": False, "batch_size": 16, "lr": 0.01, "epochs": 2}
    sampling = {"block": "transformer", "num_samples": 9, "sampling_power": 0.5} if name == "esasrec" else {}
    check_training(fit_baseline(name, data, seed=4, progress=False, **settings, **sampling), module, means)


def test_training_leaves_the_global_generator_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_baseline("multvae", data, seed=1, epochs=1, progress=False, **VAE)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite(data):
    with pytest.raises(FloatingPointError, match=r"SASRec: the loss of epoch 1 is (nan|inf); lower lr \(it is 1e\+30\)"):
        fit_baseline("sasrec", data, size=8, heads=1, lr=1e30, batch_size=8, epochs=3, progress=False)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("sasrec", {"size": 9, "heads": 2}, "size is 9 and heads is 2; size must be a multiple"),
        ("sasrec", {"layers": 0}, "layers is 0; it must be 1 or more"),
        ("sasrec", {"chunk_size": 0}, "chunk_size is 0; it must be 1 or more"),
        ("sasrec", {"dropout": 1.0}, "dropout is 1.0; it must be 0 or more and lie below 1"),
        ("sasrec", {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ("sasrec", {"epochs": 0}, "epochs is 0"),
        ("sasrec", {"patience": -1}, "patience is -1; it must be 1 or more, or 0"),
        ("sasrec", {"precision": "fp16"}, "precision is 'fp16'; allowed are 'no' and 'bf16'"),
        ("sasrec", {"metric": "ndgc@10", "epochs": 1}, "unknown metric 'ndgc@10'"),
        ("esasrec", {"num_samples": 0}, "num_samples is 0"),
        ("esasrec", {"sampling_power": 2.0}, "sampling_power is 2.0; it must lie between 0"),
        ("multvae", {"beta": -0.1}, "beta is -0.1"),
        ("multvae", {"anneal_epochs": 0}, "anneal_epochs is 0"),
        ("multvae", {"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ("multvae", {"validate_every": 0}, "validate_every is 0"),
    ],
)
def test_settings_out_of_range(data, name, setting, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline(name, data, progress=False, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"loss": "bce"}, "loss is 'bce'; allowed are 'full' and 'sampled'"),
        ({"block": "mamba"}, "block is 'mamba'; allowed are 'transformer' and 'ligr'"),
        ({"item_rows": "title"}, "item_rows is 'title'; allowed are 'random' and 'text'"),
    ],
)
def test_an_unknown_choice(data, setting, message):
    with pytest.raises(ValueError, match=message):
        SASRecRecommender.fit(data, **setting)
