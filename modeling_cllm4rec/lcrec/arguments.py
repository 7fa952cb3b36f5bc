"""Arguments of the training stages of LC-Rec."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.lcrec.alignment_tasks import ALIGNMENT_TASKS, parse_tasks
from modeling_cllm4rec.training.argument_names import accepts_other_names
from modeling_cllm4rec.training.arguments import SchedulerName, check_at_least, check_types
from modeling_cllm4rec.training.teacher_arguments import TeacherArguments

INDEX_FILE = "index.parquet"
WITHOUT_EMBEDDINGS = ("random", "vanilla", "co-occurrence", "given")
"""Methods that read no item texts. They have no indexer, so items that are added later cannot get semantic IDs."""


@accepts_other_names
@dataclass
class IndexArguments:
    """Arguments of the semantic IDs: from the item texts of a data folder to an index folder."""

    data: str = field(default="", metadata={"help": "data folder written by `cllm4rec prepare`"})
    output: str = field(default="", metadata={"help": "index folder to write"})
    seed: int = field(default=42, metadata={"help": "start of all random numbers"})
    resume: bool = field(default=False, metadata={"help": "continue from the last checkpoint of this run"})
    overwrite: bool = field(default=False, metadata={"help": "replace the index in output"})
    method: Literal["rqvae", "rk-means", "random", "vanilla", "co-occurrence", "given"] = field(
        default="rqvae",
        metadata={
            "help": "from texts: a trained RQ-VAE as in the paper, or residual k-means, which is fast; without texts: codes "
            "without meaning, one token for each item (vanilla), clusters of items of the same users, or a file of codes"
        },
    )
    co_occurrence: float = field(
        default=0.0,
        metadata={
            "help": "weight, below 1, of training co-occurrence next to the texts in the quantized vectors; above 0, items that "
            "are added later cannot get semantic IDs; 0 reads texts only, as the paper does"
        },
    )
    codes: str = field(default="", metadata={"help": "for method given: an index.json of the released LC-Rec"})
    repair: bool = field(
        default=False,
        metadata={
            "help": "for method given: of items that share their codes, as in released files, let the first keep them and give "
            "the others a free last code; without it they are an error"
        },
    )
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
        default="raise", metadata={"help": "items without one of the fields: an error, or the fields that they have"}
    )
    max_text_tokens: int | None = field(
        default=None, metadata={"help": "cut longer texts; without it, a text beyond the encoder's context is an error"}
    )
    encode_batch_size: int = field(default=64, metadata={"help": "texts encoded at a time"})
    num_levels: int = field(
        default=4, metadata={"help": "codes of a semantic ID; with co-occurrence the most; vanilla always has 1"}
    )
    codebook_size: int = field(default=256, metadata={"help": "codes of a level; vanilla has one for each item"})
    hidden_dims: list[int] = field(default_factory=lambda: [512, 256, 128], metadata={"help": "hidden layers of the encoder"})
    latent_dim: int = field(default=32, metadata={"help": "width of the quantized latents"})
    beta: float = field(default=0.25, metadata={"help": "weight of the commitment loss"})
    sinkhorn_epsilon: float = field(
        default=0.003,
        metadata={"help": "sharpness of the uniform semantic mapping of the last level; 0 switches it off, in training as well"},
    )
    uniform_mapping: Literal["conflicts", "all", "none"] = field(
        default="conflicts",
        metadata={
            "help": "items whose last code uniform semantic mapping chooses after training: those that share their codes, as in "
            "the paper, all, or none; codes that are shared after it are then resolved one by one"
        },
    )
    num_train_epochs: int = field(default=1000, metadata={"help": "passes of the RQ-VAE over the items, see max_steps"})
    max_steps: int = field(
        default=50_000,
        metadata={"help": "most steps of the RQ-VAE: a catalogue of more than 51,200 items has fewer passes, but at least one"},
    )
    per_device_train_batch_size: int = field(default=1024, metadata={"help": "items in a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "learning rate"})
    weight_decay: float = field(default=1e-4, metadata={"help": "weight decay"})
    warmup_epochs: int = field(default=50, metadata={"help": "epochs in which the learning rate rises"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip gradients to this norm"})
    save_every: int = field(default=50, metadata={"help": "epochs between checkpoints"})
    stop_after_epochs: int = field(
        default=0, metadata={"help": "end the process after this number of epochs, to be resumed later; 0 runs to the end"}
    )
    max_memory: float | None = field(
        default=None, metadata={"help": "refuse to start if the estimated memory is more GB (10^9 bytes) than this"}
    )
    plots: bool = field(default=False, metadata={"help": "plots of the report (needs matplotlib, extra lcrec)"})

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is not set; name a folder")
        check_at_least(self, 1, "num_levels", "codebook_size", "latent_dim", "num_train_epochs", "per_device_train_batch_size")
        check_at_least(self, 1, "save_every", "max_steps")
        check_at_least(self, 1, "encode_batch_size", "max_text_tokens")
        check_at_least(self, 0, "seed", "beta", "sinkhorn_epsilon", "learning_rate", "weight_decay", "max_grad_norm")
        check_at_least(self, 0, "warmup_epochs", "stop_after_epochs")
        if self.warmup_epochs > self.num_train_epochs:
            raise InputError(
                f"warmup_epochs is {self.warmup_epochs} and num_train_epochs {self.num_train_epochs}, so the learning rate would "
                "never reach its top; lower warmup_epochs"
            )
        if bool(self.codes) != (self.method == "given"):
            raise InputError(f"codes is {self.codes!r} and method {self.method!r}; a file of codes belongs to method 'given'")
        if self.repair and self.method != "given":
            raise InputError(f"repair is set and method is {self.method!r}, whose codes are all different; it belongs to 'given'")
        if not 0 <= self.co_occurrence < 1:
            raise InputError(
                f"co_occurrence is {self.co_occurrence}; it must be 0 or more and below 1 (method 'co-occurrence' reads no texts)"
            )
        if self.co_occurrence and self.method in WITHOUT_EMBEDDINGS:
            raise InputError(
                f"co_occurrence is {self.co_occurrence}, but method {self.method!r} quantizes no vectors; use 'rqvae' or "
                "'rk-means'"
            )
        if not self.fields:
            raise InputError("fields is empty; name the text columns that describe items")
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite are both set; choose one")

    @property
    def folder(self) -> Path:
        """The index folder, as a path."""
        return Path(self.output)

    def epochs_of(self, num_items: int) -> int:
        """Return the passes over a catalogue that `num_train_epochs` and `max_steps` allow, at least one.

        Example:
            >>> arguments = IndexArguments(data="data", output="index")
            >>> arguments.epochs_of(20_000), arguments.epochs_of(1_000_000)
            (1000, 51)
        """
        steps = -(-num_items // self.per_device_train_batch_size)
        return max(1, min(self.num_train_epochs, self.max_steps // steps))

    @property
    def item_encoder(self) -> dict[str, Any]:
        """Settings of the item embeddings, for items that are added later; of a local encoder, its folder's name only."""
        names = ("fields", "pooling", "on_missing_text", "max_text_tokens")
        encoder = Path(self.encoder).resolve().name if Path(self.encoder).is_dir() else self.encoder
        return {"encoder": encoder, **{name: getattr(self, name) for name in names}}


@accepts_other_names
@dataclass
class AlignmentArguments(TeacherArguments):
    """Arguments of tuning on the alignment tasks, which `align` and `update` share."""

    tune: Literal["frozen", "lora", "full"] = field(
        default="full",
        metadata={
            "help": "trained weights: the full backbone as in the paper, LoRA matrices, or the tokens of semantic IDs alone"
        },
    )
    train_words: bool = field(
        default=False,
        metadata={
            "help": "train the rows of words in the token matrices as well where the backbone is not tuned in full, as the "
            "released LoRA does; without it only those of semantic IDs"
        },
    )
    num_train_epochs: int = field(default=4, metadata={"help": "passes over the documents"})
    learning_rate: float = field(default=1e-3, metadata={"help": "learning rate of the token embeddings"})
    backbone_learning_rate: float = field(default=5e-5, metadata={"help": "learning rate of the rest of the language model"})
    lr_scheduler_type: SchedulerName = field(default="cosine", metadata={"help": "learning rate after the warm-up"})
    warmup_steps: float = field(
        default=0.01, metadata={"help": "steps in which the learning rate rises; below 1 a share of all steps, rounded down"}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip gradients to this norm; 0 does not clip"})
    tasks: list[str] = field(
        default_factory=lambda: list(ALIGNMENT_TASKS),
        metadata={
            "help": "alignment tasks, each with the share of its documents that an epoch reads, if not all: fusionseqrec=0.5"
        },
    )
    templates: str = field(default="", metadata={"help": "YAML file of prompt templates that replace the packaged ones"})
    on_missing_text: Literal["raise", "title-only"] = field(
        default="raise", metadata={"help": "items without a description: an error, or title templates only"}
    )
    intention_writer: str = field(
        default="",
        metadata={
            "help": "causal language model that writes intentions and preferences, on the run's device (default: plain rules)"
        },
    )
    seqrec: Literal["together", "apart"] = field(
        default="together",
        metadata={"help": "predict all items of a history in one pass, or make a document for each prefix as in the paper"},
    )
    reorder: float = field(
        default=0.0,
        metadata={"help": "probability that seqrec reads a history in a random order in an epoch; the paper's is 0"},
    )
    item_head_weight: float = field(default=1.0, metadata={"help": "weight of the item head's loss"})
    eval_users: int | None = field(default=1000, metadata={"help": "users of a validation, a fixed random sample; null for all"})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "users ranked at a time in validation"})
    eval_every: int = field(default=1, metadata={"help": "epochs between validations"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "eval_users", "per_device_eval_batch_size", "eval_every")
        check_at_least(self, 0, "item_head_weight")
        if not 0 <= self.reorder <= 1:
            raise InputError(f"reorder is {self.reorder}; it must lie between 0 and 1")
        tasks = self.task_weights  # a wrong task is reported here, before anything is loaded
        if self.teacher and "seqrec" not in tasks:
            raise InputError(f"teacher is {self.teacher!r}, which teaches seqrec, but tasks is {self.tasks}; add seqrec")

    def fingerprints(self) -> dict[str, str]:
        """Return checksums of the files whose content is part of a run.

        Raises:
            MissingFileError: one of these files is missing.
        """
        for name, file in self.read_files.items():
            if not file.is_file():
                raise MissingFileError(f"{name}: there is no file {file}; a resumed run needs the same one")
        return {f"{name}_sha256": hashlib.sha256(file.read_bytes()).hexdigest() for name, file in self.read_files.items()}

    @property
    def read_files(self) -> dict[str, Path]:
        """Return argument -> a file whose content is part of a run."""
        return {"templates": Path(self.templates)} if self.templates else {}

    @property
    def task_weights(self) -> dict[str, float]:
        """Task -> share of its documents that an epoch reads."""
        return parse_tasks(self.tasks)


@accepts_other_names
@dataclass
class AlignArguments(AlignmentArguments):
    """Arguments of the alignment: tokens of semantic IDs and the language model, tuned on the alignment tasks."""

    backbone: str = field(default="", metadata={"help": "name or path of a causal language model"})
    scratch_layers: int = field(
        default=0, metadata={"help": "layers of a small decoder with random weights that replaces the backbone"}
    )
    scratch_width: int = field(default=128, metadata={"help": "width of that decoder"})
    scratch_heads: int = field(default=4, metadata={"help": "attention heads of that decoder"})
    scratch_context: int = field(default=512, metadata={"help": "context length of that decoder"})
    index: str = field(default="", metadata={"help": "index folder written by `cllm4rec index-items`"})
    max_history: int = field(default=20, metadata={"help": "most items of a history, the last ones"})
    init_tokens: Literal["text", "random"] = field(
        default="text", metadata={"help": "start rows of the tokens of semantic IDs from the words of their items, or at random"}
    )
    init_columns: list[str] = field(
        default_factory=lambda: ["title", "brand", "categories"], metadata={"help": "text columns for init_tokens: text"}
    )
    item_head: Literal["none", "text", "free"] = field(
        default="none",
        metadata={
            "help": "score all items from one state, in addition to writing semantic IDs: a free row for each item, and with "
            "text a projection of its embedding in the index; recommend then uses the head"
        },
    )
    item_inputs: bool = field(
        default=True,
        metadata={"help": "of item_head: also read its rows, added to the semantic IDs of a history; other engines cannot"},
    )
    num_beams: int = field(default=20, metadata={"help": "beams of validation and of the finished model"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.index:
            raise InputError("index is not set; name the folder that `cllm4rec index-items` wrote")
        check_at_least(self, 0, "scratch_layers")
        check_at_least(self, 1, "scratch_width", "scratch_heads", "scratch_context")
        if not self.backbone and not self.scratch_layers:
            raise InputError("backbone is not set; name a language model, or set scratch_layers for a small one")
        if self.backbone and self.scratch_layers:
            raise InputError(
                f"backbone is {self.backbone!r} and scratch_layers {self.scratch_layers}; a decoder from scratch replaces the "
                "backbone: set one of the two"
            )
        if self.scratch_layers and self.scratch_width % self.scratch_heads:
            raise InputError(
                f"scratch_width is {self.scratch_width} and scratch_heads {self.scratch_heads}; the width must be a multiple of "
                "the heads"
            )
        if self.scratch_layers and self.tune != "full":
            raise InputError(f"tune is {self.tune!r}, but random weights must all be trained; set tune: full")
        check_at_least(self, 1, "max_history", "num_beams")
        if self.num_beams < 10:
            raise InputError(f"num_beams is {self.num_beams}; validation ranks 10 items and needs 10 beams or more")
        if self.item_head != "none" and "seqrec" not in self.task_weights:
            raise InputError(f"item_head is {self.item_head!r}, which learns from seqrec, but tasks is {self.tasks}; add seqrec")

    @property
    def read_files(self) -> dict[str, Path]:
        """Return argument -> a file whose content is part of a run."""
        return {"index": Path(self.index) / INDEX_FILE, **super().read_files}
