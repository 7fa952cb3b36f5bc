"""Save a trained model that a command changed to a new folder, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.corpora.atomic_files import atomic_folder, check_new_folder
from modeling_cllm4rec.hub.model_card import RECORD_FILE, read_records


def save_changed_model(model: RecommenderModel, tokenizer: Any, source: str, output: Path, paragraph: str, note: str) -> None:
    """Save a model with its tokenizer and the records of its trainings.

    Args:
        source: folder or Hub name that the model was loaded from.
        output: folder, which must not exist or be empty.
        paragraph: Markdown for the end of the model's card, if it has one.
        note: sentence for the record of the last training, from which later cards are made.

    Raises:
        ExistingFileError: the output holds something.
    """
    if model.card is not None:
        model.card += paragraph
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output.resolve(), unique=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if records := read_records(Path(source)):
            last: dict[str, Any] = records[next(reversed(records))]
            last["notes"] = [*last.get("notes", []), note]
            (temporary / RECORD_FILE).write_text(json.dumps(records, indent=1), encoding="utf-8")
        check_new_folder(output)  # another process may have written it in the meantime
