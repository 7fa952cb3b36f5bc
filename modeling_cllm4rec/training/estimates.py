"""Estimates of the memory and the time that a training takes, logged before and while it runs.

Sizes of weights, moments, copies and logits follow from shapes. What a layer keeps for the backward pass depends on the
architecture, so it is counted on three short sequences of the model itself. The few factors that remain were measured;
recipes/experiments/memory_estimates.py measures them again. Time is never guessed: it is measured on the first steps.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
import torch
from transformers import PreTrainedConfig

from modeling_cllm4rec.core.errors import MemoryLimitError
from modeling_cllm4rec.core.language_model import new_backbone
from modeling_cllm4rec.core.losses import ItemLoss
from modeling_cllm4rec.core.processes import process_count, process_number
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.training.arguments import TrainingArguments
from modeling_cllm4rec.training.parameters import checkpoint_activations, local_part, trainable, tune_backbone
from modeling_cllm4rec.training.sparse_rows import sparse_tables

if TYPE_CHECKING:
    from modeling_cllm4rec.training.sharding import Sharding

logger = logging.getLogger(__name__)

GB = 10**9
FLOAT = 4
"""Bytes of a number in 32 bits; logits, moments and checkpoints are held so."""
LIBRARIES = 150 * 10**6
"""Bytes that torch's own buffers, threads and code take once the first step runs, measured on CPU."""
WORD_CHUNK, ITEM_CHUNK, SAMPLE = 256, 8192, 4096
"""Defaults of `losses.word_nll` and `losses.multinomial_nll`."""
LOGIT_COPIES = 3
"""Logits, their softmax, and its gradient."""
SCORE_COPIES = 3
"""Scores of a validation batch: logits, in 32 bits, as an array."""
ACTIVATION_SLACK = 1.3
"""Factor on kept activations for the gradients of the current layer and for gaps between batches of many lengths."""
GATHERED_LAYERS = 3
"""Layers of a sharded model that are whole at once: the current one, the next one, and the buffer that it is gathered into."""
PROBE_LENGTHS = (8, 16, 32)
FEWER_ROWS = "leave rare items out (k_core of `prepare`), or use a backbone of a smaller width"


class LargestBatch(NamedTuple):
    """The batch of a kind of step that takes the most memory.

    Attributes:
        rows: documents of one forward pass.
        length: tokens of the longest one, to which the others are padded.
        item_states: states that predict an item, each over the whole catalogue.
        word_states: states that predict a word.
        item_loss: how the states that predict an item read the catalogue.
    """

    rows: int
    length: int
    item_states: int = 0
    word_states: int = 0
    item_loss: ItemLoss = "exact"


@dataclass(frozen=True)
class MemoryEstimate:
    """The peak memory of a process.

    Attributes:
        held: constant parts: part -> bytes.
        phases: further parts in each phase of a run: phase -> part -> bytes.

    Example:
        >>> MemoryEstimate({"weights": 3 * GB}, {"step": {"logits": GB}, "checkpoint": {"copies": 2 * GB}}).line()
        '5.0 GB of memory, most in checkpoint: weights 3.0 GB, copies 2.0 GB'
    """

    held: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        """The phase that holds most; empty where there is none."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()), default="")

    @property
    def parts(self) -> dict[str, int]:
        """Part -> bytes at the peak."""
        return {**self.held, **self.phases.get(self.peak_phase, {})}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())

    def line(self) -> str:
        """Return the estimate in words, the largest parts first."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {size / GB:.1f} GB" for name, size in largest if size >= GB // 20) or "all parts are small"
        phase = f", most in {self.peak_phase}" if self.peak_phase else ""
        return f"{self.total / GB:.1f} GB of memory{phase}: {shown}"


def training_memory(stage: Any, device: torch.device, sharding: Sharding | None = None) -> MemoryEstimate:
    """Estimate the memory of a training stage on its device, starting from the memory that its process holds now.

    Args:
        stage: a `stages.Stage` whose model is built, on its device, its trainable weights chosen.
        sharding: of the model, None where it is whole on each process.
    """
    model, arguments = stage.model, stage.arguments
    weights, tables = tensor_bytes(local_part(weight) for weight in trainable(model).values()), sparse_tables(model)
    by_rows = [local_part(table) for table in tables]
    moments = 2 * (weights - tensor_bytes(by_rows)) + FLOAT * sum(map(len, by_rows))
    average = weights if arguments.average_decay else 0
    held = {"held now": _held_now(device), "moments": moments, "average": average, "libraries": LIBRARIES}
    if sharding is None:
        gradients = _gradient_bytes(model)
        per_token, per_square = activation_bytes(model, arguments)
    else:
        gradients = sharding.units.step_bytes(process_count(), arguments.bf16, sharding.settings.reshard_after_forward)
        per_token, per_square = activation_bytes_of(model.config.text_config, arguments, device)
    phases: dict[str, dict[str, int]] = {}
    for kind, batch in stage.largest_batches().items():
        phases[f"{kind} steps"] = {
            **gradients,
            "activations": int(ACTIVATION_SLACK * batch.rows * (per_token * batch.length + per_square * batch.length**2)),
            "item logits": item_loss_bytes(_num_items(model), batch.item_states, batch.item_loss),
            "gradients of rows": _row_gradient_bytes(batch, tables),
            "word logits": word_loss_bytes(model, batch.word_states),
        }
    scores = {"scores of all items": SCORE_COPIES * stage.scores_at_once * _num_items(model) * FLOAT}
    phases["validation"] = {**gradients, **scores}
    if sharding is not None:
        phases["sums of gradients"] = sharding.units.sum_bytes(process_count())
    if device.type == "cpu":  # elsewhere a checkpoint's copies are in another memory than the training
        phases["checkpoints"] = {**gradients, "copies": weights + moments + average}
        if sharding is not None and process_number() == 0:
            phases["the final model"] = {"whole weights": sharding.units.all_bytes}
    return MemoryEstimate(held, phases)


class Units(NamedTuple):
    """The units of a sharded model, each gathered as a whole: numbers of their weights.

    Attributes:
        layers: decoder layers.
        layer, layer_trained: weights of the largest layer, and the most of a layer that train.
        root, root_trained: weights of no layer: ID tables, word embeddings, output layer.
        trained: weights that train in layers and root.
        tables: weights of ID tables that are in no unit, because steps read only some of their rows.

    Example:
        >>> Units(2, 100, 100, 50, 50, 250).held_bytes(2, average=False)
        {'weights': 500, 'moments': 1000, 'average': 0}
    """

    layers: int
    layer: int
    layer_trained: int
    root: int
    root_trained: int
    trained: int
    tables: int = 0

    @staticmethod
    def of(model: torch.nn.Module, layers: Sequence[torch.nn.Module], tables: Sequence[torch.Tensor] = ()) -> Units:
        """Count the units of a model, sharded or not, on any device: `layers` and the rest, without `tables` read by rows."""
        inner, trained = sum(map(_numel, layers)), sum(_numel(layer, trained=True) for layer in layers)
        layer, layer_trained = max(map(_numel, layers)), max(_numel(layer, trained=True) for layer in layers)
        apart, apart_trained = (sum(one.numel() for one in tables if one.requires_grad or not only) for only in (False, True))
        rest, rest_trained = _numel(model) - inner - apart, _numel(model, trained=True) - trained - apart_trained
        return Units(len(layers), layer, layer_trained, rest, rest_trained, rest_trained + trained, apart)

    @property
    def all_bytes(self) -> int:
        """Bytes of the whole model in 32 bits."""
        return FLOAT * (self.root + self.layers * self.layer + self.tables)

    def held_bytes(self, processes: int, average: bool) -> dict[str, int]:
        """Return the bytes that each process holds throughout."""
        shard = FLOAT * self.trained // processes
        return {"weights": self.all_bytes // processes, "moments": 2 * shard, "average": shard if average else 0}

    def step_bytes(self, processes: int, bf16: bool, reshard_after_forward: bool) -> dict[str, int]:
        """Return the bytes of a step in addition: the root, the layers that are whole at once, shards of gradients, whole ones.

        Of two layers at once one computes and one is being gathered, into a buffer first.
        """
        whole = GATHERED_LAYERS if reshard_after_forward else self.layers + 1
        layers = whole * self.layer * (FLOAT // 2 if bf16 else FLOAT)
        gradients = FLOAT * (self.trained // processes + self.root_trained + 2 * self.layer_trained)
        return {"gathered weights": FLOAT * self.root + layers, "gradients": gradients}

    def sum_bytes(self, processes: int) -> dict[str, int]:
        """Return the bytes at the end of the backward pass, when the gradients of the root are summed from a copy."""
        gradients = FLOAT * (self.trained // processes + 2 * self.root_trained)
        return {"gathered weights": FLOAT * self.root, "gradients": gradients}


def _numel(module: torch.nn.Module, trained: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained)


def id_table_memory(num_users: int, num_items: int, width: int, average: bool = False, sparse: bool = False) -> MemoryEstimate:
    """Estimate the memory of the ID rows of CLLM4Rec on CPU before a model is built.

    Args:
        width: K, width of the backbone's states.
        average: whether a moving average of the weights is kept.
        sparse: whether a step reads and writes only the rows that it names.

    Example:
        >>> id_table_memory(0, 2_000_000, 768).held["ID rows"] / GB
        12.288
    """
    rows = 2 * (num_users + num_items) * width * FLOAT
    kept = rows if average else 0
    moments, gradients = (rows // width, 0) if sparse else (2 * rows, rows)
    held = {"ID rows": rows, "moments of ID rows": moments, "average of ID rows": kept}
    copies = {"gradients": gradients // 2, "copies": rows + moments + kept}
    phases = {"steps": {"gradients of ID rows": gradients}, "checkpoints": copies}
    return MemoryEstimate(held, phases)


def item_loss_bytes(num_items: int, states: int, item_loss: ItemLoss) -> int:
    """Return the bytes of a batch's logits over all items, over some at a time, or over a sample; see `losses.multinomial_nll`.

    Example:
        >>> item_loss_bytes(1_000_000, 64, "exact"), item_loss_bytes(1_000_000, 64, "sampled")
        (768000000, 3145728)
    """
    columns = {"exact": num_items, "chunked": min(num_items, ITEM_CHUNK), "sampled": min(num_items, SAMPLE)}[item_loss]
    return LOGIT_COPIES * states * columns * FLOAT


def item_head_bytes(num_items: int, width: int, states: int, item_loss: ItemLoss) -> int:
    """Return the bytes of a training step of the head alone: table, gradient (summed from two of its size) and logits.

    The gradient of a sampled loss is that of the rows it reads.
    """
    table = num_items * width * FLOAT
    gradient = 2 * (states + SAMPLE) * width * FLOAT if item_loss == "sampled" else 2 * table
    return table + gradient + item_loss_bytes(num_items, states, item_loss)


def word_loss_bytes(model: RecommenderModel, states: int) -> int:
    """Return the bytes of the logits over the words: some states at a time where the head is frozen; see `losses.word_nll`."""
    trains = any(weight.requires_grad for weight in model.word_head.parameters())
    words = int(model.backbone.get_input_embeddings().weight.shape[0])
    return LOGIT_COPIES * (states if trains else min(states, WORD_CHUNK)) * words * FLOAT


def activation_bytes(model: Any, arguments: TrainingArguments) -> tuple[float, float]:
    """Measure on short rows the a n + b n^2 bytes that the backbone keeps of n tokens for its backward pass.

    Args:
        model: a module with a `backbone`.

    Returns:
        a, and b, which is 0 where attention keeps no matrix of weights. What is kept whatever the length (weights cast to 16
        bits) is not in them.
    """
    body, words = model.backbone.base_model, model.backbone.get_input_embeddings()
    device, training = words.weight.device, model.training
    counts = []
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for length in PROBE_LENGTHS:
            rows = torch.zeros(1, length, words.embedding_dim, device=device, requires_grad=True)
            mask = torch.ones(1, length, dtype=torch.long, device=device)
            mask[0, -1] = 0
            with SavedBytes(model) as saved, torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
                body(inputs_embeds=rows, attention_mask=mask, use_cache=False)
            counts.append(saved.count)
    model.train(training)
    square, each, _ = np.polyfit(PROBE_LENGTHS, counts, deg=2)
    embeddings = 4 * words.embedding_dim * FLOAT  # rows looked up, chosen between words and IDs, and their gradient
    return float(each) + embeddings, max(0.0, float(square))


def activation_bytes_of(
    config: PreTrainedConfig, arguments: TrainingArguments, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Measure as `activation_bytes` what a backbone keeps, from its configuration alone: on one layer and on two of its shape.

    So no process needs the whole backbone, which may be sharded, or larger than its memory.
    """
    one, two = (activation_bytes(_Probe(config, layers, arguments, device), arguments) for layers in (1, 2))
    more = config.get_text_config().num_hidden_layers - 1
    return one[0] + more * (two[0] - one[0]), max(0.0, one[1] + more * (two[1] - one[1]))


class _Probe(torch.nn.Module):
    """A backbone of few layers, its weights not initialized, trained as the arguments say."""

    def __init__(self, config: PreTrainedConfig, layers: int, arguments: TrainingArguments, device: torch.device | str) -> None:
        super().__init__()
        config = copy.deepcopy(config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            self.backbone: Any = new_backbone(config)
            tune_backbone(self, arguments)  # type: ignore[arg-type]
        if arguments.gradient_checkpointing:
            checkpoint_activations(self.backbone)
        self.to_empty(device=device)
        for buffer in self.buffers():  # BERT looks its positions up in one
            buffer.zero_()


class SavedBytes:
    """Counts what autograd saves within its block, each storage once, weights of the model left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.count = 0
        self._seen = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.count += storage.nbytes()
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._hooks.__exit__(*raised)


def indexing_memory(num_items: int, width: int, codebook_size: int, latent_dim: int) -> MemoryEstimate:
    """Estimate the memory of indexing a catalogue: embeddings, latents, and distances of a piece of it to a level's codes.

    Args:
        width: of the embeddings; codebook_size: K codes of a level; latent_dim: width of what is quantized.
    """
    process = psutil.Process().memory_info().rss
    piece, double = min(num_items, PIECE), 2 * FLOAT
    held = {
        "held now": process,
        "embeddings": num_items * width * FLOAT,
        "latents": num_items * latent_dim * FLOAT,
        "libraries": LIBRARIES,
    }
    distances = DISTANCE_COPIES * piece * codebook_size * double
    phases = {
        "the start of the codebooks": {"residuals": num_items * latent_dim * FLOAT, "distances": piece * codebook_size * FLOAT},
        "the uniform mapping": {"distances": distances, "piece": 3 * piece * latent_dim * double},
    }
    return MemoryEstimate(held, phases)


PIECE = 65_536
"""Items whose distances are held together, `lcrec.semantic_ids.ITEMS_AT_ONCE`."""


DISTANCE_COPIES = 6
"""(PIECE, K) matrices in 64 bits that Sinkhorn's rounds hold at once."""


def check_memory(estimate: MemoryEstimate, limit_gb: float | None, advice: str, device: torch.device | None = None) -> None:
    """Warn where the machine has less memory than the estimate; refuse where it is over a limit that was asked for.

    Args:
        limit_gb: `max_memory` in GB (10^9 bytes), or None.
        advice: how to use less memory.
        device: whose memory counts; None means that of the processor.

    Raises:
        MemoryLimitError: the estimate is over the limit.
    """
    if limit_gb is not None and estimate.total > limit_gb * GB:
        raise MemoryLimitError(f"max_memory is {limit_gb:g} GB, but the estimate is {estimate.line()}; {advice}")
    room = _free(device) + estimate.held.get("held now", 0)
    if estimate.total > room:
        logger.warning("the estimate of %s is more than the %.1f GB that are free; %s", estimate.line(), room / GB, advice)


def advice_for(estimate: MemoryEstimate, arguments: TrainingArguments) -> str:
    """Return advice on how to make the largest part of the peak smaller."""
    part = max((name for name in estimate.parts if name != "held now"), key=lambda name: estimate.parts[name])
    if part == "activations":
        spare = "" if arguments.gradient_checkpointing else ", or set gradient_checkpointing=True"
        return f"lower batch_size and raise gradient_accumulation_steps: the result is the same{spare}"
    advice = {
        "item logits": "set item_loss='chunked' (the same value) or item_loss='sampled'",
        "word logits": "lower batch_size and raise gradient_accumulation_steps, or do not tune the word head",
        "scores of all items": "lower eval_batch_size",
    }
    return advice.get(part, FEWER_ROWS)


class Pace:
    """The rate in documents a second, measured on the steps, and the ETA, logged early and again when it is more certain.

    Args:
        documents: kind of step -> documents in the whole run.
        done: kind of step -> those of them that an earlier process has done.

    Example:
        >>> pace = Pace({"content": 400})
        >>> for _ in range(Pace.FIRST + 10):
        ...     pace.count("content", 10, 0.5)
        >>> pace.left()
        'content 20 documents a second, 280 to go: 14 s'
    """

    FIRST = 2
    """Steps that are left out of the measurement: they warm caches up."""
    TOLD_AFTER = (3, 12)
    """Numbers of measured steps after which the rate is logged."""
    UNCHANGED = 0.25
    """Share by which a later estimate must differ from the one that was logged, or the log would repeat itself."""

    def __init__(self, documents: Mapping[str, int], done: Mapping[str, int] | None = None) -> None:
        self.to_go = Counter(dict(documents))
        self.to_go.subtract(done or {})
        self.steps: Counter[str] = Counter()
        self._documents: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._logged: tuple[int, float] | None = None

    def count(self, kind: str, documents: int, seconds: float) -> None:
        """Count a step that is done."""
        self.steps[kind] += 1
        self.to_go[kind] -= documents
        if self._logged is not None:
            self._logged = (self._logged[0], self._logged[1] - seconds)
        if self.steps[kind] > self.FIRST:
            self._documents[kind] += documents
            self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds

    def is_new(self) -> bool:
        """Return whether there is something to log, which counts as logged then.

        Some kind of step has just been measured often enough, and it is the first measurement of its kind or changes the ETA.
        """
        if not any(steps - self.FIRST in self.TOLD_AFTER for steps in self.steps.values()):
            return False
        rates = self._rates()
        seconds = sum(number / rates[kind] for kind, number in self.to_go.items() if kind in rates)
        if self._logged is not None:
            measured, expected = self._logged
            if measured == len(rates) and abs(seconds - expected) <= self.UNCHANGED * max(expected, 0.0):
                return False
        self._logged = (len(rates), seconds)
        return True

    def _rates(self) -> dict[str, float]:
        """Return the documents a second of each kind that was measured."""
        least = self.FIRST + self.TOLD_AFTER[0]
        return {kind: self._documents[kind] / self._seconds[kind] for kind in self.to_go if self.steps[kind] >= least}

    def left(self) -> str:
        """Return the rate of each kind, the documents left, and the ETA; validation and saving are not counted."""
        parts, total, rates = [], 0.0, self._rates()
        for kind, number in self.to_go.items():
            if kind not in rates:
                parts.append(f"{kind} not measured yet, {number:,} documents to go")
                continue
            total += number / rates[kind]
            parts.append(f"{kind} {rates[kind]:,.0f} documents a second, {number:,} to go")
        return f"{'; '.join(parts)}: {in_words(total)}"


class Stopwatch:
    """A timer of laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def in_words(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Example:
        >>> in_words(42), in_words(600), in_words(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors in 32 bits."""
    return sum(one.numel() * FLOAT for one in tensors)


def _gradient_bytes(model: RecommenderModel) -> dict[str, int]:
    """Return the bytes of a step's dense gradients: backbone, ID rows of the largest group, and the sum of two for a table."""
    sparse = {id(table) for table in sparse_tables(model)}
    tables = [weight for weight in model.id_parameters if weight.requires_grad and id(weight) not in sparse]
    ids = {id(weight) for weight in model.id_parameters}
    backbone = tensor_bytes(weight for weight in trainable(model).values() if id(weight) not in ids)
    dense = {id(weight) for weight in tables}
    step = max(tensor_bytes(weight for weight in group if id(weight) in dense) for group in model.id_parameter_groups)
    return {"gradients": backbone + step, "second gradient of a table": max((tensor_bytes([one]) for one in tables), default=0)}


def _row_gradient_bytes(batch: LargestBatch, tables: Sequence[torch.Tensor]) -> int:
    """Return the bytes of the sparse gradients of a batch, as they come from each use of a row, and with equal rows summed."""
    if not tables:
        return 0
    width = tables[0].shape[1]
    # A token is looked up in the user table and in the item table, and again in each for the regularization.
    uses = 4 * batch.rows * batch.length + 2 * batch.item_states + (SAMPLE if batch.item_states else 0)
    return 2 * uses * width * FLOAT


def _num_items(model: RecommenderModel) -> int:
    return model.num_items if model.scores_catalogue else 0


def _held_now(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _free(device: torch.device | None) -> int:
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
