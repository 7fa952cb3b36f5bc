"""The end of a training stage: the best epoch as a saved folder, its record and its card."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import peft
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.hub.model_card import give_card, save_record, training_record
from modeling_cllm4rec.hub.push import push_run
from modeling_cllm4rec.training.parameters import merge_lora
from modeling_cllm4rec.training.progress import Progress
from modeling_cllm4rec.training.stages import Stage

logger = logging.getLogger(__name__)


def save_finished(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    processes: PartialState,
    adapted: peft.PeftModel | None,
    *,
    folder: Path | None = None,
    record: str | None = None,
    card_data: RecommendationData | None = None,
    earlier: Path | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Save the model of a finished stage on the main process, and let the others wait; do nothing for a stage that was stopped.

    Args:
        stage: its model holds the weights of the best epoch.
        adapted: handle of the LoRA matrices, which are merged first; None without LoRA.
        folder: where the model is saved (default: the run's folder, which also gets the record).
        record: name of the record in `training.json` (default: the stage's).
        card_data: the data folder that the model card describes; None writes no card.
        earlier: folder with the records of earlier stages, which are kept.
        notes: sentences about this training for the card.
    """
    arguments = stage.arguments
    if progress.finished and processes.is_main_process:
        merge_lora(adapted)
        target = arguments.run_folder if folder is None else folder
        stage.model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        written = {**training_record(arguments, progress), **({"notes": list(notes)} if notes else {})}
        save_record(arguments.run_folder, record or stage.name, written, earlier)
        if card_data is not None:
            give_card(stage.model, arguments.run_folder, card_data)
        logger.info("model saved in %s", target)
        if arguments.push_to_hub:
            name = arguments.hub_model_id or arguments.run_folder.resolve().name
            logger.info("model uploaded: %s", push_run(target, name, private=arguments.hub_private_repo).commit)
    processes.wait_for_everyone()
