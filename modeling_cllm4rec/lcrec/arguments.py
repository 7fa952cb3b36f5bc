"""Arguments of the training stages of LC-Rec."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.lcrec.alignment_tasks import ALIGNMENT_TASKS, parse_tasks
from modeling_cllm4rec.training.arguments import TrainingArguments, check_at_least, check_types

INDEX_FILE = "index.parquet"
WITHOUT_EMBEDDINGS = ("random", "vanilla", "co-occurrence", "given")
"""Methods that read no item texts. Their indices have no indexer, so they have no place for items that come later."""


@dataclass
class IndexArguments:
    """From the texts of a data folder's items to an index folder."""

    data: str = field(default="", metadata={"help": "data folder written by `cllm4rec prepare`"})
    output: str = field(default="", metadata={"help": "index folder to be written"})
    seed: int = field(default=42, metadata={"help": "start of all random numbers"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint of this run"})
    overwrite: bool = field(default=False, metadata={"help": "throw away the index in output"})
    method: Literal["rqvae", "rk-means", "random", "vanilla", "co-occurrence", "given"] = field(
        default="rqvae",
        metadata={
            "help": "from texts: a trained RQ-VAE as in the paper, or residual k-means, quick; without texts: codes without "
            "meaning, one token for each item (vanilla), clusters of items that the same people chose, or a file of codes"
        },
    )
    co_occurrence: float = field(
        default=0.0,
        metadata={
            "help": "share, below 1, that who chose what in training has in what is quantized, beside the texts; with any, the "
            "index has no place for items that come later; 0 reads texts only, as the paper does"
        },
    )
    codes: str = field(default="", metadata={"help": "for method given: an index.json of the released LC-Rec"})
    encoder: str = field(
        default="minilm", metadata={"help": "a transformers model, sentence-transformers:NAME, or the packaged minilm"}
    )
    fields: list[str] = field(
        default_factory=lambda: ["title", "description"], metadata={"help": "text columns of the items that are encoded"}
    )
    pooling: Literal["separate", "together"] = field(
        default="separate", metadata={"help": "each field's own mean, then their mean, as in the paper; or one text of all"}
    )
    on_missing_text: Literal["raise", "title-only"] = field(
        default="raise", metadata={"help": "items without one of the fields: an error, or what they have"}
    )
    max_text_tokens: int | None = field(
        default=None, metadata={"help": "cut longer texts; without it, a text beyond the encoder's context is an error"}
    )
    encode_batch_size: int = field(default=64, metadata={"help": "texts encoded at a time"})
    num_levels: int = field(
        default=4, metadata={"help": "codes of an item's index; of co-occurrence the most; vanilla always has 1"}
    )
    codebook_size: int = field(default=256, metadata={"help": "codes of a level; vanilla has one for each item"})
    hidden_dims: list[int] = field(default_factory=lambda: [512, 256, 128], metadata={"help": "hidden layers of the encoder"})
    latent_dim: int = field(default=32, metadata={"help": "width of what is quantized"})
    beta: float = field(default=0.25, metadata={"help": "weight of the commitment"})
    sinkhorn_epsilon: float = field(
        default=0.003, metadata={"help": "sharpness of the uniform semantic mapping of the last level; 0 switches it off"}
    )
    epochs: int = field(default=1000, metadata={"help": "passes of the RQ-VAE over the items"})
    batch_size: int = field(default=1024, metadata={"help": "items of a step"})
    lr: float = field(default=1e-3, metadata={"help": "learning rate"})
    weight_decay: float = field(default=1e-4, metadata={"help": "weight decay"})
    warmup_epochs: int = field(default=50, metadata={"help": "epochs in which the learning rate rises"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip gradients to this norm"})
    save_every: int = field(default=50, metadata={"help": "epochs between checkpoints"})
    stop_after_epochs: int = field(
        default=0, metadata={"help": "end the process after so many epochs, to be resumed later; 0 runs to the end"}
    )
    max_memory: float | None = field(
        default=None, metadata={"help": "refuse to begin when the estimate is more GB (10^9 bytes) of memory than this"}
    )
    plots: bool = field(default=False, metadata={"help": "plots of the report (needs matplotlib, extra lcrec)"})

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is not set; give --{name} or set it in the YAML file")
        check_at_least(self, 1, "num_levels", "codebook_size", "latent_dim", "epochs", "batch_size", "save_every")
        check_at_least(self, 1, "encode_batch_size", "max_text_tokens")
        check_at_least(self, 0, "seed", "beta", "sinkhorn_epsilon", "lr", "weight_decay", "max_grad_norm")
        check_at_least(self, 0, "warmup_epochs", "stop_after_epochs")
        if self.warmup_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs} and epochs {self.epochs}, so the learning rate would never reach lr; "
                "lower warmup_epochs"
            )
        if bool(self.codes) != (self.method == "given"):
            raise InputError(f"codes is {self.codes!r} and method {self.method!r}; a file of codes belongs to --method given")
        if not 0 <= self.co_occurrence < 1:
            raise InputError(
                f"co_occurrence is {self.co_occurrence}; it must be 0 or more and below 1 (--method co-occurrence reads no texts)"
            )
        if self.co_occurrence and self.method in WITHOUT_EMBEDDINGS:
            raise InputError(
                f"co_occurrence is {self.co_occurrence}, but --method {self.method} quantizes no vectors; use rqvae or rk-means"
            )
        if not self.fields:
            raise InputError("fields is empty; name the text columns that tell items apart")
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite are both set; choose one")

    @property
    def folder(self) -> Path:
        """The index folder."""
        return Path(self.output)

    @property
    def item_encoder(self) -> dict[str, Any]:
        """How texts become embeddings, for items that come later; of a local encoder, its folder's name only."""
        names = ("fields", "pooling", "on_missing_text", "max_text_tokens")
        encoder = Path(self.encoder).resolve().name if Path(self.encoder).is_dir() else self.encoder
        return {"encoder": encoder, **{name: getattr(self, name) for name in names}}


@dataclass
class AlignArguments(TrainingArguments):
    """Alignment tuning: index tokens and the language model, on tasks between language and indices."""

    backbone: str = field(default="", metadata={"help": "name or path of a causal language model"})
    scratch_layers: int = field(
        default=0, metadata={"help": "in place of a backbone, a small decoder with random weights and so many layers"}
    )
    scratch_width: int = field(default=128, metadata={"help": "width of that decoder"})
    scratch_heads: int = field(default=4, metadata={"help": "attention heads of that decoder"})
    scratch_context: int = field(default=512, metadata={"help": "tokens that this decoder reads at once"})
    index: str = field(default="", metadata={"help": "index folder written by `cllm4rec index-items`"})
    tune: Literal["frozen", "lora", "full"] = field(
        default="full",
        metadata={"help": "the backbone: all of its weights as in the paper, LoRA matrices, or index tokens alone"},
    )
    epochs: int = field(default=4, metadata={"help": "passes over the documents"})
    lr: float = field(default=1e-3, metadata={"help": "learning rate of the token embeddings"})
    backbone_lr: float = field(default=5e-5, metadata={"help": "learning rate of the rest of the language model"})
    schedule: Literal["constant", "linear", "cosine"] = field(
        default="cosine", metadata={"help": "decay of the learning rate after the warm-up"}
    )
    warmup_share: float = field(default=0.01, metadata={"help": "share of the steps in which the learning rate rises"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip gradients to this norm; 0 does not clip"})
    tasks: list[str] = field(
        default_factory=lambda: list(ALIGNMENT_TASKS),
        metadata={"help": "alignment tasks, each with the share of its documents read in an epoch if not all: fusionseqrec=0.5"},
    )
    templates: str = field(default="", metadata={"help": "YAML file of prompt templates in place of the packaged ones"})
    on_missing_text: Literal["raise", "title-only"] = field(
        default="raise", metadata={"help": "items without a description: an error, or left to the tasks that read titles"}
    )
    intention_writer: str = field(
        default="",
        metadata={
            "help": "causal language model that writes intentions and preferences, on the run's device (default: plain rules)"
        },
    )
    seqrec: Literal["together", "apart"] = field(
        default="together",
        metadata={"help": "all items of a history predicted in one pass, or a document for each prefix as in the paper"},
    )
    reorder: float = field(
        default=0.0,
        metadata={"help": "probability that seqrec reads a history in a random order in an epoch; the paper's is 0"},
    )
    max_history: int = field(default=20, metadata={"help": "most items of a history, the last ones"})
    init_tokens: Literal["text", "random"] = field(
        default="text", metadata={"help": "rows of index tokens started from the words of the items that bear them, or at random"}
    )
    init_columns: list[str] = field(
        default_factory=lambda: ["title", "brand", "categories"], metadata={"help": "texts that init_tokens: text reads"}
    )
    num_beams: int = field(default=20, metadata={"help": "beams of validation and of the finished model"})
    eval_users: int | None = field(default=1000, metadata={"help": "users of a validation, a fixed random sample; null for all"})
    eval_batch_size: int = field(default=64, metadata={"help": "users ranked at a time in validation"})
    eval_every: int = field(default=1, metadata={"help": "epochs between validations"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.index:
            raise InputError("index is not set; give --index or set it in the YAML file")
        check_at_least(self, 0, "scratch_layers")
        check_at_least(self, 1, "scratch_width", "scratch_heads", "scratch_context")
        if not self.backbone and not self.scratch_layers:
            raise InputError("backbone is not set; give --backbone or set it in the YAML file, or scratch_layers for a small one")
        if self.backbone and self.scratch_layers:
            raise InputError(
                f"backbone is {self.backbone!r} and scratch_layers {self.scratch_layers}; a decoder from scratch stands in "
                "place of a backbone: set one of the two"
            )
        if self.scratch_layers and self.scratch_width % self.scratch_heads:
            raise InputError(
                f"scratch_width is {self.scratch_width} and scratch_heads {self.scratch_heads}; the width must be a multiple of "
                "the heads"
            )
        if self.scratch_layers and self.tune != "full":
            raise InputError(f"tune is {self.tune!r}, but random weights must be trained whole; set tune: full")
        for name in ("max_history", "num_beams", "eval_users", "eval_batch_size", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= self.reorder <= 1:
            raise InputError(f"reorder is {self.reorder}; it must lie between 0 and 1")
        if self.num_beams < 10:
            raise InputError(f"num_beams is {self.num_beams}; validation ranks 10 items and needs 10 beams or more")
        _ = self.task_weights

    def fingerprints(self) -> dict[str, str]:
        """The index and, where given, the templates by content."""
        files = {"index": Path(self.index) / INDEX_FILE}
        if self.templates:
            files["templates"] = Path(self.templates)
        return {f"{name}_sha256": hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}

    @property
    def task_weights(self) -> dict[str, float]:
        """Task -> share of its documents that an epoch reads."""
        return parse_tasks(self.tasks)
