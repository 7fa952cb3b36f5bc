"""From texts to an index folder: whole, resumed to the bit, refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import get_linear_schedule_with_warmup

from modeling_cllm4rec.core.catalogue import IdMap
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec.arguments import IndexArguments
from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
from modeling_cllm4rec.lcrec.indexing import index_items
from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, shared_codes
from modeling_cllm4rec.training.interruption import RunInterrupted


@pytest.fixture
def embeddings(data: RecommendationData) -> np.ndarray:
    """Like items are near one another; two are twins."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(5, 12))[np.arange(data.num_items) % 5] + 0.1 * generator.normal(size=(data.num_items, 12))
    points[7] = points[2]
    return points.astype(np.float32)


def arguments(data: RecommendationData, output: Path, **changes: Any) -> IndexArguments:
    shape = {
        "num_levels": 3,
        "codebook_size": 5,
        "hidden_dims": [16],
        "latent_dim": 4,
        "num_train_epochs": 12,
        "per_device_train_batch_size": 16,
    }
    return IndexArguments(data=str(data.folder), output=str(output), **{**shape, "warmup_epochs": 2, "save_every": 4, **changes})


@pytest.mark.parametrize("method", ["rqvae", "rk-means", "random"])
def test_a_whole_index(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, method: str) -> None:
    given = arguments(data, tmp_path / "index", method=method)
    index, progress = index_items(given, None if method == "random" else embeddings)
    assert index is not None and progress.finished
    loaded, ids = SemanticIds.load(tmp_path / "index" / "index.parquet")
    assert np.array_equal(loaded.codes, index.codes) and loaded.num_levels == 3 and loaded.codebook_size == 5
    assert ids.fingerprint == IdMap(data.items["item_id"], "item_id").fingerprint
    assert len(shared_codes(index.codes)) == 0
    record = json.loads((tmp_path / "index" / "index.json").read_text())
    assert record["catalogue_fingerprint"] == ids.fingerprint and record["report"]["collisions"]["index"] == 0
    report = (tmp_path / "index" / "report.md").read_text()
    assert report.startswith(f"# Semantic IDs of {data.num_items} items, 3 levels of 5 codes")
    if method != "random":
        assert record["report"]["collisions"]["nearest"] > 0  # the twins at least
        model = RQVAEModel.from_pretrained(tmp_path / "index" / "rqvae")
        assert model.latents(embeddings).shape == (data.num_items, 12 if method == "rk-means" else 4)


def test_uniform_mapping_of_conflicts_all_or_none(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    """The report has the distance of each step; conflicts alone move fewer items from their nearest codes than all do."""
    moved, reports = {}, {}
    for mapping in ("conflicts", "all", "none"):
        index_items(arguments(data, tmp_path / mapping, method="rk-means", uniform_mapping=mapping), embeddings)
        record = json.loads((tmp_path / mapping / "index.json").read_text())
        assert record["uniform_mapping"] == mapping
        reports[mapping] = record["report"]
        moved[mapping] = record["report"]["moved_items"]["nearest"]
    assert reports["none"]["displacement"].keys() == {"nearest", "index"}
    assert reports["conflicts"]["displacement"].keys() == {"nearest", "uniform", "index"}
    distances = {mapping: report["displacement"]["index"] for mapping, report in reports.items()}
    assert distances["none"] <= distances["conflicts"] < distances["all"] and moved["conflicts"] < moved["all"]
    assert "| uniform |" in (tmp_path / "conflicts" / "report.md").read_text()


def test_an_index_of_an_earlier_version_was_mapped_as_a_whole(
    data: RecommendationData, embeddings: np.ndarray, tmp_path: Path
) -> None:
    given = arguments(data, tmp_path / "index", method="rk-means", uniform_mapping="all")
    whole, _ = index_items(given, embeddings)
    record = tmp_path / "index" / "run.json"
    record.write_text(json.dumps({key: value for key, value in json.loads(record.read_text()).items() if "mapping" not in key}))
    again, _ = index_items(dataclasses.replace(given, resume=True), embeddings)
    assert whole is not None and again is not None and np.array_equal(again.codes, whole.codes)
    with pytest.raises(ValueError, match=r"other arguments \(then, now\): {'uniform_mapping': \('all', 'conflicts'\)}"):
        index_items(dataclasses.replace(given, uniform_mapping="conflicts", resume=True), embeddings)


def test_training_lowers_the_loss(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    _, progress = index_items(arguments(data, tmp_path / "index", num_train_epochs=60, learning_rate=1e-2), embeddings)
    assert np.mean(progress.losses[-5:]) < 0.7 * np.mean(progress.losses[:5])


def test_the_rqvae_trains_as_a_plain_loop(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    """AdamW with clipping, a linear schedule with warm-up over steps, a new order each epoch, dead codes revived after it."""
    given = arguments(data, tmp_path / "index", max_grad_norm=0.5, learning_rate=0.01)
    _, progress = index_items(given, embeddings)
    config = RQVAEConfig(embeddings.shape[1], [16], 4, 3, 5, beta=given.beta, sinkhorn_epsilon=given.sinkhorn_epsilon)
    torch.manual_seed(given.seed)
    model, points = RQVAEModel(config), torch.from_numpy(embeddings)
    model.initialize_codebooks(points, given.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=given.weight_decay)
    rates = get_linear_schedule_with_warmup(optimizer, 2 * 3, 12 * 3)  # 40 items in batches of 16 are 3 steps
    means = []
    for epoch in range(12):
        seeds = [int(np.random.SeedSequence((given.seed, epoch, use)).generate_state(1)[0]) for use in (1, 2)]
        torch.manual_seed(seeds[0])
        order, used, total = np.random.default_rng((given.seed, epoch)).permutation(40), torch.zeros(3, 5, dtype=torch.bool), 0.0
        for rows in (order[:16], order[16:32], order[32:]):
            model.train()
            out = model(points[rows], uniform_last=True)
            optimizer.zero_grad()
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            rates.step()
            total += out.loss.item() * len(rows)
            for level, code in enumerate(out.codes.T):
                used[level, code] = True
        model.revive_dead_codes(points, used, seeds[1])
        means.append(total / 40)
    assert progress.losses == pytest.approx(means, rel=1e-6)
    for name, weight in load_file(tmp_path / "index" / "rqvae" / "model.safetensors").items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


def test_a_signal_ends_the_training_with_its_epoch(
    data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = index_items(arguments(data, tmp_path / "whole"), embeddings)
    before = signal.getsignal(signal.SIGTERM)
    revive, epochs = RQVAEModel.revive_dead_codes, []

    def revive_and_end(self: RQVAEModel, *rest: Any) -> None:
        epochs.append(revive(self, *rest))
        if len(epochs) == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunInterrupted, match="index-items was stopped by SIGTERM after epoch 7, which is saved; go on"),
    ):
        patch.setattr(RQVAEModel, "revive_dead_codes", revive_and_end)
        index_items(arguments(data, tmp_path / "stopped"), embeddings)
    assert signal.getsignal(signal.SIGTERM) == before
    rest, _ = index_items(arguments(data, tmp_path / "stopped", resume=True), embeddings)
    assert whole is not None and rest is not None and np.array_equal(whole.codes, rest.codes)


def test_resumed_is_bit_equal(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    whole, _ = index_items(arguments(data, tmp_path / "whole"), embeddings)
    for number, stop in enumerate((3, 4, 9)):
        index, progress = index_items(arguments(data, tmp_path / "parts", stop_after_epochs=stop, resume=number > 0), embeddings)
        assert index is None and (progress.epoch, progress.finished) == (stop, False)
    rest, _ = index_items(arguments(data, tmp_path / "parts", resume=True), embeddings)
    assert whole is not None and rest is not None and np.array_equal(whole.codes, rest.codes)
    weights = [load_file(tmp_path / name / "rqvae" / "model.safetensors") for name in ("whole", "parts")]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_a_large_catalogue_has_fewer_passes(
    data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """40 items in batches of 16 are 3 steps a pass: 10 steps allow 3 of 12 passes, with the same share of warm-up."""
    with caplog.at_level(logging.INFO):
        _, progress = index_items(arguments(data, tmp_path / "index", max_steps=10), embeddings)
    assert progress.epoch == 3 and progress.finished
    assert "max_steps 10 allows 3 passes over 40 items in place of num_train_epochs 12" in caplog.text
    whole = arguments(data, tmp_path / "whole")
    assert [whole.epochs_of(size) for size in (1, 40, 16 * (50_000 // 12), 16 * (50_000 // 11), 10**9)] == [12, 12, 12, 11, 1]


def test_overwriting_throws_away_what_was_there(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    index_items(arguments(data, tmp_path / "index"), embeddings)
    picture = tmp_path / "index" / "code_use.png"
    picture.touch()
    index_items(arguments(data, tmp_path / "index", method="random", overwrite=True))
    names = sorted(file.name for file in (tmp_path / "index").iterdir())
    assert names == ["index.json", "index.parquet", "report.md", "run.json", "training.json"]


def test_random_codes_do_not_look_at_embeddings(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    with_them, _ = index_items(arguments(data, tmp_path / "a", method="random"), embeddings)
    without, _ = index_items(arguments(data, tmp_path / "b", method="random"))
    assert with_them is not None and without is not None and np.array_equal(with_them.codes, without.codes)


def test_one_process_of_a_launch_works(
    data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    index, progress = index_items(arguments(data, tmp_path / "index"), embeddings)
    assert index is None and progress.finished and not (tmp_path / "index").exists()


def test_nothing_depends_on_the_global_random_state(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    codes = []
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        index, _ = index_items(arguments(data, tmp_path / str(number), num_train_epochs=4), embeddings)
        assert index is not None
        codes.append(index.codes)
    assert np.array_equal(*codes)


def test_plots(data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    index_items(arguments(data, tmp_path / "index", method="rk-means", plots=True), embeddings)
    assert (tmp_path / "index" / "code_use.png").read_bytes().startswith(b"\x89PNG")


class TestBadInput:
    def test_output_that_holds_something(self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
        index_items(arguments(data, tmp_path / "index", num_train_epochs=2), embeddings)
        before = (tmp_path / "index" / "index.parquet").read_bytes()
        with pytest.raises(FileExistsError, match="holds an index already; set resume"):
            index_items(arguments(data, tmp_path / "index", num_train_epochs=2), embeddings)
        with pytest.raises(ValueError, match=r"had other arguments \(then, now\): \{'learning_rate': \(0.001, 0.5\)\}"):
            index_items(arguments(data, tmp_path / "index", num_train_epochs=2, learning_rate=0.5, resume=True), embeddings)
        assert (tmp_path / "index" / "index.parquet").read_bytes() == before
        index_items(arguments(data, tmp_path / "index", num_train_epochs=3, overwrite=True), embeddings)
        with pytest.raises(FileExistsError, match="is a data folder, which is never written into"):
            index_items(arguments(data, data.folder), embeddings)

    def test_embeddings(self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
        embeddings[3] = np.nan
        with pytest.raises(ValueError, match=r"the embeddings of 1 items are NaN or infinite, first \["):
            index_items(arguments(data, tmp_path / "a"), embeddings)
        with pytest.raises(ValueError, match=r"embeddings have shape \(3, 12\); 40 items need one row each"):
            index_items(arguments(data, tmp_path / "b"), embeddings[:3])

    def test_a_failed_start_leaves_the_folder_free(
        self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path
    ) -> None:
        broken = np.full_like(embeddings, np.inf)
        with pytest.raises(ValueError, match="the embeddings of 40 items are NaN or infinite"):
            index_items(arguments(data, tmp_path / "index"), broken)
        index_items(arguments(data, tmp_path / "index", num_train_epochs=2), embeddings)
        before = {file: file.read_bytes() for file in (tmp_path / "index").rglob("*") if file.is_file()}
        with pytest.raises(ValueError, match="the embeddings of 40 items are NaN or infinite"):
            index_items(arguments(data, tmp_path / "index", num_train_epochs=3, overwrite=True), broken)
        assert {file: file.read_bytes() for file in (tmp_path / "index").rglob("*") if file.is_file()} == before

    def test_resume_with_other_embeddings(self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
        index_items(arguments(data, tmp_path / "index", stop_after_epochs=4), embeddings)
        with pytest.raises(ValueError, match=r"had other arguments \(then, now\): \{'embeddings_sha256'"):
            index_items(arguments(data, tmp_path / "index", resume=True), embeddings + 1)

    def test_a_damaged_record(self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
        index_items(arguments(data, tmp_path / "index", stop_after_epochs=4), embeddings)
        (tmp_path / "index" / "run.json").write_text('{"seed": ')
        with pytest.raises(ValueError, match="resume: .*run.json is damaged .*; set overwrite, or choose another output"):
            index_items(arguments(data, tmp_path / "index", resume=True), embeddings)

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["config.json", "checkpoints/alignment/run.json", "index.parquet"])
    def test_a_folder_of_something_else(
        self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, name: str, overwrite: bool
    ) -> None:
        there = tmp_path / "model" / name
        there.parent.mkdir(parents=True)
        there.write_text("{}")
        with pytest.raises(FileExistsError, match="but no record of an index run; .* choose another output"):
            index_items(arguments(data, tmp_path / "model", overwrite=overwrite), embeddings)
        assert [file for file in (tmp_path / "model").rglob("*") if file.is_file()] == [there]

    def test_plots_without_matplotlib(
        self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'plots needs matplotlib, .*"cllm4rec\[lcrec\]", or pass plots=False'):
            index_items(arguments(data, tmp_path / "index", plots=True), embeddings)
        assert not (tmp_path / "index").exists()

    def test_a_loss_that_is_no_number(self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path) -> None:
        message = r"RQ-VAE: the loss of epoch \d+ is (inf|nan); lower learning_rate, or look at the embeddings"
        with pytest.raises(FloatingPointError, match=message):
            index_items(arguments(data, tmp_path / "index"), embeddings * 1e30)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_levels": 27}, "num_levels is 27; a semantic ID has at most 26 levels"),
            ({"warmup_epochs": 13}, "warmup_epochs is 13 and num_train_epochs 12, .* lower warmup_epochs"),
            ({"codebook_size": 41}, "40 items are fewer than the 41 codes of a level, .* lower codebook_size to 40 or less"),
            ({"codebook_size": 3}, r"40 items are more than the 27 semantic IDs of 3 levels of 3 codes; raise num_levels"),
            ({"max_steps": 0}, "max_steps is 0; it must be 1 or more"),
            ({"num_levels": 0}, "num_levels is 0; it must be 1 or more"),
            ({"method": "pq"}, "method is 'pq'; allowed are 'rqvae', 'rk-means', 'random'"),
            ({"fields": []}, "fields is empty; name the text columns"),
            ({"resume": True, "overwrite": True}, "resume and overwrite are both set"),
            ({"hidden_dims": ["8"]}, "hidden_dims is .* it must be list"),
        ],
    )
    def test_arguments(
        self, data: RecommendationData, embeddings: np.ndarray, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            index_items(arguments(data, tmp_path / "index", **changes), embeddings)
