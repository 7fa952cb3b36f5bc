"""What all tests share: no network, one thread, a tiny world, and tiny backbones with random weights."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

# Read by the libraries when they are imported, so they are set before any import of them; subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="cllm4rec-tests-")  # no ".py" in its path: `evaluate` cuts the path there
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    HF_HOME=_CACHE,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from modeling_cllm4rec.corpora.data_folder import RecommendationData  # noqa: E402
from modeling_cllm4rec.corpora.preparation import prepare_tables  # noqa: E402
from modeling_cllm4rec.corpora.synthetic import SyntheticDataset, make_synthetic_dataset  # noqa: E402

hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")

NO_EXTRA = re.compile(r"needs (the extra|implicit|playwright|matplotlib)|could not import|extra \w+ is not installed")
"""Why a test is skipped where a package of an extra is not there."""
CONTEXT = 128
END_OF_TEXT = "<|endoftext|>"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-extra", action="store_true", help="all extras are installed: a test skipped for lack of one fails")


def pytest_collection_finish() -> None:
    """Leave the modules out of garbage collections: every training begins with one, which would walk through all of torch."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which a test file was not imported, or with `--every-extra` a test was skipped for lack of an extra."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [(report.nodeid, report.longrepr[2]) for report in reporter.stats.get("skipped", ())]
    # --doctest-ignore-import-errors skips a test file with a broken import, and importlib mode then collects nothing from it.
    broken = [name for name, reason in skipped if "unable to import module" in reason and Path(name).name.startswith("test_")]
    if broken:
        reporter.write_line("\nthese test files cannot be imported, run them alone:\n" + "\n".join(broken), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if not session.config.getoption("every_extra"):
        return
    missing = [f"{name}: {reason}" for name, reason in skipped if NO_EXTRA.search(reason)]
    if missing:
        reporter.write_line("\n--every-extra, but these were skipped:\n" + "\n".join(missing), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def python_formats_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after each test what commands do to the format of warnings, so that pytest shows where one came from."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


@pytest.fixture(scope="session")
def synthetic_dataset() -> SyntheticDataset:
    """60 users, 40 items, about 8 interactions each, ids of awkward shape."""
    return make_synthetic_dataset(num_users=60, num_items=40, seed=0, interactions_per_user=8)


@pytest.fixture(scope="session")
def data_folder(synthetic_dataset: SyntheticDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small world as a prepared folder (random split, seed 0): read it, do not write into it."""
    folder = tmp_path_factory.mktemp("data") / "small-world"
    prepare_tables(
        synthetic_dataset.interactions, synthetic_dataset.items, synthetic_dataset.users, folder, split="random", seed=0
    )
    return folder


@pytest.fixture(scope="session")
def data(data_folder: Path) -> RecommendationData:
    """Return the contents of `data_folder`."""
    return RecommendationData.load(data_folder)


@pytest.fixture(scope="session")
def tiny_backbones(synthetic_dataset: SyntheticDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of causal language models (hidden size 32, 2 layers, context 128, random weights) with their tokenizer.

    `gpt2`, `gpt2-untied`, `llama`, `llama-tied` and `qwen2`, whose vocabulary is padded beyond its tokenizer. The
    tokenizer is a byte-level BPE over the world's texts with an end-of-text token and, as GPT-2's, no padding token.
    """
    import torch
    from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

    tokenizer = _byte_level_tokenizer(_texts(synthetic_dataset))
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    shared = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    gpt2 = {**shared, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
    llama = {
        **shared,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    configs: dict[str, PreTrainedConfig] = {
        "gpt2": GPT2Config(**gpt2, tie_word_embeddings=True),
        "gpt2-untied": GPT2Config(**gpt2, tie_word_embeddings=False),
        "llama": LlamaConfig(**llama, tie_word_embeddings=False),
        "llama-tied": LlamaConfig(**llama, tie_word_embeddings=True),
        "qwen2": Qwen2Config(**{**llama, "vocab_size": len(tokenizer) + 16}, tie_word_embeddings=False),
    }
    folder = tmp_path_factory.mktemp("backbones")
    with torch.random.fork_rng():
        return {name: _save_backbone(config, tokenizer, folder / name) for name, config in configs.items()}


@pytest.fixture(scope="session", params=["gpt2", "llama", "qwen2"])
def tiny_backbone(request: pytest.FixtureRequest, tiny_backbones: dict[str, Path]) -> Path:
    """One backbone folder, for each of three shapes in turn; others by `parametrize(..., indirect=True)`."""
    return tiny_backbones[request.param]


def _texts(world: SyntheticDataset) -> list[str]:
    columns = [world.items["title"], world.items["description"], world.users["biography"], world.interactions["review"]]
    return [text for column in columns for text in column.to_pylist() if text]


def _byte_level_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, model_max_length=CONTEXT)


def _save_backbone(config, tokenizer, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
