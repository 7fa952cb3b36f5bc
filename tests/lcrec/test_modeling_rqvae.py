"""The item indexer: losses and gradients by hand, K-means, dead codes, and a reload that keeps the codebooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

import modeling_cllm4rec  # noqa: F401  (teaches the Auto classes)
from modeling_cllm4rec.lcrec import modeling_rqvae
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel, k_means, residual_k_means
from modeling_cllm4rec.lcrec.semantic_ids import nearest_codes, residuals


def small_model(**changes) -> RQVAEModel:
    torch.manual_seed(0)
    shape = {"input_dim": 6, "hidden_dims": [8], "latent_dim": 2, "num_levels": 2, "codebook_size": 3}
    return RQVAEModel(RQVAEConfig(**{**shape, **changes}))


def plain_model() -> RQVAEModel:
    """No encoder, one dimension, code vectors 0, 4 and then -1, 1."""
    config = RQVAEConfig(input_dim=1, hidden_dims=(), latent_dim=1, num_levels=2, codebook_size=2, beta=0.5)
    model = RQVAEModel(config)
    with torch.no_grad():
        model.codebooks.copy_(torch.tensor([[[0.0], [4.0]], [[-1.0], [1.0]]]))
    return model


def test_loss_by_hand():
    out = plain_model()(torch.tensor([[4.5], [-2.0]]))
    assert out.codes.tolist() == [[1, 1], [0, 0]]
    # residuals .5, -2 after the first level; squared distances (.25, 4), then (.25, 1)
    expected = 1.5 * (0.25 + 4) / 2 + 1.5 * (0.25 + 1) / 2
    torch.testing.assert_close(out.quantization_loss, torch.tensor(expected))
    torch.testing.assert_close(out.reconstruction, torch.tensor([[5.0], [-1.0]]))
    torch.testing.assert_close(out.reconstruction_loss, torch.tensor((0.25 + 1) / 2))
    torch.testing.assert_close(out.loss, out.reconstruction_loss + out.quantization_loss)


def test_gradient_goes_straight_through():
    model = plain_model()
    latents = torch.tensor([[4.5]], requires_grad=True)
    out = model(latents)
    out.reconstruction.sum().backward()
    assert latents.grad.tolist() == [[1.0]]  # as if nothing had been quantized
    assert model.codebooks.grad is None or not model.codebooks.grad.any()


def test_gradients_of_the_quantization_by_hand():
    model = plain_model()
    latents = torch.tensor([[4.5]], requires_grad=True)
    _, _, loss = model.quantize(latents)
    loss.backward()
    # d/dv (r - v)^2 = 2 (v - r): level one 2 (4 - 4.5), level two 2 (1 - .5)
    assert model.codebooks.grad.flatten().tolist() == [0.0, -1.0, 0.0, 1.0]
    # beta * 2 (r - v), at both levels: .5 * 2 * .5 + .5 * 2 * -.5
    assert latents.grad.tolist() == [[0.0]]


def test_uniform_last_level_spreads_the_batch():
    model = small_model(num_levels=1, codebook_size=4, hidden_dims=(), latent_dim=2, input_dim=2)
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) * 0.01
    with torch.no_grad():
        model.codebooks.copy_(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]]))
    assert torch.bincount(model(points).codes[:, 0], minlength=4).tolist() == [40, 0, 0, 0]
    spread = torch.bincount(model(points, uniform_last=True).codes[:, 0], minlength=4)
    assert spread.min() >= 5 and spread.max() <= 15


@pytest.mark.parametrize(("rows", "spreads"), [(1, False), (3, False), (31, False), (32, True), (64, True)])
def test_fewer_rows_than_codes_take_their_nearest_ones(rows, spreads):
    model = small_model(num_levels=1, codebook_size=32, hidden_dims=(), latent_dim=4, input_dim=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.codebooks.copy_(torch.randn(1, 32, 4, generator=generator))
    points = torch.randn(rows, 4, generator=generator)
    assert torch.equal(model(points, uniform_last=True).codes, model(points).codes) != spreads


@given(st.integers(0, 1000))
def test_codes_equal_the_plain_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    model = small_model(num_levels=3).eval()
    with torch.no_grad():
        model.codebooks.copy_(torch.randn(3, 3, 2, generator=generator))
    points = torch.randn(9, 6, generator=generator)
    out = model(points)
    latents = model.latents(points.numpy())
    codes = nearest_codes(latents, model.codebook_array)
    assert np.array_equal(out.codes.numpy(), codes)
    quantized = model.quantize(out.latents)[1].detach().numpy()
    np.testing.assert_allclose(latents - quantized, residuals(latents, model.codebook_array, codes, 3), atol=1e-5)


def test_reconstruction_reaches_the_encoder_by_the_chain_rule():
    model = small_model(quantization_weight=0.0)
    points = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    model(points).loss.backward()
    found = [parameter.grad.clone() for parameter in model.encoder.parameters()]
    assert not model.codebooks.grad.any()
    model.zero_grad()
    latents = model.encoder(points)
    quantized = model.quantize(latents)[1].detach().requires_grad_()
    torch.nn.functional.mse_loss(model.decoder(quantized), points).backward()
    latents.backward(quantized.grad)
    for ours, parameter in zip(found, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


def test_k_means_is_as_good_as_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    centres, chosen = k_means(points, 10)
    inertia = float((points - centres[chosen]).square().sum())
    theirs = [cluster.KMeans(10, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(5)]
    assert inertia < 1.05 * max(theirs)


@given(st.integers(1, 6), st.integers(6, 20), st.integers(0, 1000))
def test_k_means_ends_where_centres_are_means(count, items, seed):
    points = torch.randn(items, 2, generator=torch.Generator().manual_seed(seed))
    centres, chosen = k_means(points, count, seed)
    assert torch.equal(chosen, torch.cdist(points, centres).argmin(1))
    torch.testing.assert_close(centres, torch.stack([points[chosen == code].mean(0) for code in range(count)]))


def test_k_means_finds_what_is_there():
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    points = centres.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found, chosen = k_means(points, 3, seed=1)
    for group in chosen.split(20):
        assert len(set(group.tolist())) == 1
    torch.testing.assert_close(found[chosen[::20]], torch.stack([part.mean(0) for part in points.split(20)]))
    assert torch.equal(k_means(points, 3, seed=1)[0], found)


def test_k_means_of_points_that_are_all_alike_or_too_few():
    centres, chosen = k_means(torch.ones(5, 2), 3)
    assert torch.equal(centres[chosen], torch.ones(5, 2))
    with pytest.raises(ValueError, match="2 items are fewer than the 3 codes of a level; lower codebook_size"):
        k_means(torch.zeros(2, 1), 3)


def test_codebooks_start_once_and_a_reload_keeps_them(tmp_path):
    points = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    model = small_model()
    assert not model.initialized
    model.initialize_codebooks(points, seed=1)
    assert model.initialized
    with torch.no_grad():
        model.codebooks += 1  # training
    before = model.codebooks.clone()
    model.initialize_codebooks(points, seed=1)
    assert torch.equal(model.codebooks, before)
    model.save_pretrained(tmp_path)
    loaded = RQVAEModel.from_pretrained(tmp_path)
    assert loaded.initialized
    loaded.initialize_codebooks(points, seed=1)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded(points).codes, model.eval()(points).codes)


def test_the_first_codebook_is_k_means_of_all_latents():
    points = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    model = small_model().eval()
    model.initialize_codebooks(points, seed=4)
    with torch.no_grad():
        latents = model.encoder(points)
    first, chosen = k_means(latents, 3, 4)
    torch.testing.assert_close(model.codebooks[0], first)
    torch.testing.assert_close(model.codebooks[1], k_means(latents - first[chosen], 3, 5)[0])


def test_dead_codes_are_put_onto_items():
    points = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    model = small_model()
    model.initialize_codebooks(points)
    with torch.no_grad():
        model.codebooks[0, 2] = 1e6
        used = torch.zeros(2, 3, dtype=torch.bool)
        used[0, :2] = used[1] = True
        assert model.revive_dead_codes(points, used, seed=0) == 1
        latents = model.encoder(points)
    assert bool((model.codebooks[0, 2] == latents).all(1).any())
    assert model.revive_dead_codes(points, torch.ones(2, 3, dtype=torch.bool), seed=0) == 0


def test_residual_k_means_quantizes_the_embeddings_themselves():
    points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    model = residual_k_means(points, num_levels=2, codebook_size=5, seed=0)
    assert np.array_equal(model.latents(points), points)
    assert model.codebook_array.shape == (2, 5, 4)
    with torch.no_grad():
        out = model(torch.from_numpy(points))
    error = ((out.reconstruction - torch.from_numpy(points)) ** 2).mean()
    assert error < 0.5 * points.var()


@pytest.mark.parametrize("shape", [{}, {"hidden_dims": [], "latent_dim": 6}], ids=["autoencoder", "plain"])
def test_the_auto_class_reads_it_to_the_bit(shape, tmp_path):
    model = small_model(**shape).eval()
    points = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    model.initialize_codebooks(points)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is RQVAEModel
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size is 0; it must be 1 or more"),
        ({"hidden_dims": [8, 0]}, "hidden_dims is 0; it must be 1 or more"),
        ({"beta": -1.0}, "beta is -1.0; it must be 0 or more"),
        ({"hidden_dims": ()}, "hidden_dims is empty, .* but latent_dim is 2 and input_dim 6"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        small_model(**changes)


# ---- large catalogues in pieces ----


def test_pieces_compute_the_same(monkeypatch):
    """Codebooks from all points, revived codes: the whole in one piece or in pieces of seven items."""
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    used = torch.ones(2, 3, dtype=torch.bool)
    used[0, 1] = used[1, 2] = False
    found = []
    for size in (65_536, 7):
        monkeypatch.setattr(modeling_rqvae, "ITEMS_AT_ONCE", size)
        monkeypatch.setattr(modeling_rqvae, "POINTS_PER_CENTRE", 20)  # 60 points for 3 centres: all of them
        model = small_model()
        model.initialize_codebooks(points)
        start = model.codebooks.clone()
        model.revive_dead_codes(points, used, seed=1)
        found.append((start, model.codebooks.clone()))
    torch.testing.assert_close(found[0], found[1])


def test_of_many_points_a_sample_is_clustered(monkeypatch):
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = centres.repeat(400, 1) + 0.1 * torch.randn(1200, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(modeling_rqvae, "ITEMS_AT_ONCE", 100)
    monkeypatch.setattr(modeling_rqvae, "POINTS_PER_CENTRE", 50)
    found, chosen = k_means(points, 3, seed=1)
    assert torch.equal(chosen, torch.cdist(points, found).argmin(1))  # all points have a centre
    torch.testing.assert_close(found[chosen[:3]], centres, atol=0.05, rtol=0)
    assert not torch.equal(found, torch.stack([points[chosen == code].mean(0) for code in range(3)]))  # those of the sample
    assert torch.equal(k_means(points, 3, seed=1)[0], found)


def test_embeddings_that_are_quantized_as_they_are_stay_as_they_are():
    points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    before = points.copy()
    residual_k_means(points, num_levels=2, codebook_size=5, seed=0)
    assert np.array_equal(points, before)


def test_a_draw_from_more_than_multinomial_takes():
    """2^24 categories are the most of `torch.multinomial`."""
    weights = torch.zeros(2**24 + 2, dtype=torch.float64)
    weights[[5, 2**24 + 1]] = torch.tensor([1.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = [modeling_rqvae._draw(weights, generator) for _ in range(20)]
    assert set(drawn) == {5, 2**24 + 1} and drawn.count(5) < 10
