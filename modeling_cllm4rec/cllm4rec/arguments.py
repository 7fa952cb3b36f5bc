"""Arguments of the training stages of CLLM4Rec."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.training.argument_names import accepts_other_names
from modeling_cllm4rec.training.arguments import TrainingArguments, check_at_least, from_json
from modeling_cllm4rec.training.teacher_arguments import TeacherArguments

if TYPE_CHECKING:  # importing them takes seconds, which `--help` and a wrong flag need not wait for
    from modeling_cllm4rec.cllm4rec.objectives import RegularizationConfig
    from modeling_cllm4rec.cllm4rec.prompts import Prompts
    from modeling_cllm4rec.core.losses import ItemLoss

logger = logging.getLogger(__name__)

INIT_COLUMNS = ("title", "brand", "categories")
"""Text columns whose words initialize the rows of an item."""


@accepts_other_names
@dataclass
class StageArguments(TrainingArguments):
    """Arguments of pretraining and of finetuning.

    Attributes:
        sections: sections of a YAML file whose stages share these fields; the fields may also be set above both.
    """

    sections = ("pretrain", "finetune")  # without an annotation, so that it is no field

    lambda_c: float = field(default=1.0, metadata={"help": "weight of the mutual regularization; 0 switches it off"})
    lambda_l: float = field(default=0.0, metadata={"help": "weight of the prior on collaborative rows; 0 switches it off"})
    mutual_regularization: Literal["paper", "released"] = field(
        default="paper", metadata={"help": "scaling of the regularization: as the paper's equations, or as the released code"}
    )
    item_loss: Literal["auto", "exact", "chunked", "sampled"] = field(
        default="auto",
        metadata={
            "help": "softmax over the catalogue: all logits at once (exact), in chunks (the same value), or sampled; auto: exact "
            "where the largest batch has at most 2^25 logits, chunked above"
        },
    )
    id_optim: Literal["optim", "rowwise_adagrad"] = field(
        default="optim",
        metadata={
            "help": "optimizer of the ID rows: that of optim, which reads and writes all rows in each step; or rowwise_adagrad, "
            "which reads and writes only rows that the step names or samples, for item_loss: sampled over large catalogues"
        },
    )
    shard_tables_above: float = field(
        default=1.0,
        metadata={
            "help": "with fsdp and id_optim: rowwise_adagrad, ID tables of more GB (10^9 bytes) than this are sharded by rows "
            "and never gathered; smaller ones are whole on each process"
        },
    )
    reorder: bool = field(default=True, metadata={"help": "draw a new order of each history in each epoch"})
    drop_user: float = field(
        default=0.1, metadata={"help": "probability that a history is written without its user's token; 0 in the paper"}
    )
    max_history_tokens: int | None = field(
        default=None,
        metadata={"help": "longest prompt in tokens; the oldest items are dropped (default: the backbone's context)"},
    )
    prompts: dict[str, str] | str | None = field(
        default=None, metadata={"help": "templates that replace default ones, as JSON; see cllm4rec/prompts.py"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            self.prompts = from_json("prompts", self.prompts)
        super().__post_init__()
        check_at_least(self, 1, "max_history_tokens")
        check_at_least(self, 0, "lambda_c", "lambda_l", "shard_tables_above")
        if self.lambda_l and self.mutual_regularization == "released":
            raise InputError(
                f"lambda_l is {self.lambda_l}, but the released code has no prior; set lambda_l: 0, or "
                "mutual_regularization: paper"
            )
        if self.id_optim == "rowwise_adagrad" and self.item_loss != "sampled":
            raise InputError(
                f"id_optim is 'rowwise_adagrad', but item_loss {self.item_loss!r} has a gradient for all rows; set item_loss: "
                "sampled, or id_optim: optim"
            )
        if not 0 <= self.drop_user <= 1:
            raise InputError(f"drop_user is {self.drop_user}; it must lie between 0 and 1")
        _ = self.templates  # validates the templates before anything is loaded

    @property
    def templates(self) -> Prompts:
        """Return the prompt templates: the default ones, with `prompts` in place of some."""
        from modeling_cllm4rec.cllm4rec.prompts import Prompts

        assert not isinstance(self.prompts, str)
        return Prompts.from_mapping(self.prompts)

    def item_loss_of(self, states: int, num_items: int) -> ItemLoss:
        """Return the item loss of a run, with `auto` resolved and logged.

        Args:
            states: that predict an item in the largest batch of a process.
        """
        if self.item_loss != "auto":
            return self.item_loss
        from modeling_cllm4rec.core.losses import exact_or_chunked

        chosen = exact_or_chunked(states, num_items)
        logger.info("item_loss auto: %s, for up to %s states x %s items", chosen, f"{states:,}", f"{num_items:,}")
        return chosen

    @property
    def sparse_rows(self) -> bool:
        """Whether a step reads and writes only the ID rows that it names."""
        return self.id_optim == "rowwise_adagrad"

    @property
    def weights(self) -> RegularizationConfig:
        """Return the weights of the regularization."""
        from modeling_cllm4rec.cllm4rec.objectives import RegularizationConfig

        return RegularizationConfig(self.lambda_c, self.lambda_l, self.mutual_regularization)


@accepts_other_names
@dataclass
class PretrainArguments(StageArguments):
    """Pretraining (section 3.3): content warm-up, then alternating L and C steps with mutual regularization."""

    least_epochs = 0  # without any epoch, the stage writes the new model, to be finetuned as it is

    num_train_epochs: int = field(
        default=10,
        metadata={"help": "passes over the interactions, after the warmup_epochs of the content LM; 0 leaves them out"},
    )
    drop_user: float = field(default=0.0, metadata={"help": "probability that a history is written without its user's token"})
    backbone: str = field(default="", metadata={"help": "name or path of a causal language model"})
    backbone_weights: Literal["pretrained", "random"] = field(
        default="pretrained",
        metadata={"help": "weights of the backbone: pretrained, or random in the same shape (LLM-Scratch of the paper)"},
    )
    warmup_epochs: int = field(default=1, metadata={"help": "epochs of the content LM alone, without regularization"})
    init_ids: Literal["text", "text_vectors", "random"] = field(
        default="text",
        metadata={"help": "initial item rows: the mean word row of the texts, their whitened vectors, or random as in the paper"},
    )
    init_columns: list[str] = field(
        default_factory=lambda: list(INIT_COLUMNS),
        metadata={
            "help": "text columns that init_ids reads; text_vectors reads the training reviews where there are none of them"
        },
    )
    init_encoder: str = field(
        default="tfidf", metadata={"help": "of init_ids: text_vectors: tfidf, or the name or path of an encoder"}
    )
    content_share: float = field(default=1.0, metadata={"help": "share of the text documents that one C pass reads"})
    text_validation_share: float = field(default=0.02, metadata={"help": "share of the text documents held out for validation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone:
            raise InputError("backbone is not set; it must be the name or the path of a causal language model")
        check_at_least(self, 0, "warmup_epochs")
        for name in ("content_share", "text_validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


@accepts_other_names
@dataclass
class FinetuneArguments(TeacherArguments, StageArguments):
    """Finetuning for recommendation (section 3.4): masked history in, held-out items under the multinomial likelihood."""

    start: str = field(default="", metadata={"help": "folder of the pretrained model (default: OUTPUT/pretrained)"})
    mask_share: float = field(default=0.2, metadata={"help": "share p_m of the history that is held out"})
    target: Literal["holdout", "all", "next"] = field(
        default="holdout",
        metadata={
            "help": "items to predict: held-out ones as in the paper, all as in the released code, or, with reorder: false, the "
            "one after a random beginning of the history"
        },
    )
    average_holdout: bool = field(default=False, metadata={"help": "average a user's loss over the held-out items"})
    content_every: int = field(default=0, metadata={"help": "recommendation steps between two C steps; 0 for no C steps"})
    train_on: Literal["train", "train+validation"] = field(
        default="train", metadata={"help": "splits to train on; the model is always selected on validation"}
    )
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "users per batch in validation"})
    eval_every: int = field(default=1, metadata={"help": "epochs between validations"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start = self.start or str(self.run_folder / "pretrained")
        if not 0 < self.mask_share < 1:
            raise InputError(f"mask_share is {self.mask_share}; it must lie between 0 and 1, both excluded")
        if self.target == "next" and self.reorder:
            raise InputError("target is 'next', which reads the order of histories; set reorder: false, or target: holdout")
        check_at_least(self, 1, "per_device_eval_batch_size", "eval_every")
        check_at_least(self, 0, "content_every")
