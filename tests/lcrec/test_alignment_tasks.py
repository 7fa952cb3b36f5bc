"""The table of alignment tasks, a task that the library does not have, and a checksum of all documents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.lcrec import alignment_tasks
from modeling_cllm4rec.lcrec.ablation import added_tasks
from modeling_cllm4rec.lcrec.alignment import AlignArguments, align
from modeling_cllm4rec.lcrec.alignment_corpus import AlignmentCorpus
from modeling_cllm4rec.lcrec.alignment_documents import Documents
from modeling_cllm4rec.lcrec.alignment_tasks import (
    ALIGNMENT_TASKS,
    INDEX,
    PREFERENCE,
    AlignmentTask,
    DocumentSource,
    TemplateKind,
    alignment_task,
    parse_tasks,
)
from modeling_cllm4rec.lcrec.alignment_templates import load_templates
from modeling_cllm4rec.lcrec.indexing import IndexArguments, index_items
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds
from modeling_cllm4rec.tokenization.tokenization_lcrec import add_semantic_id_tokens

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts.md"
BRAND_TEMPLATES = """
item2brand:
  - 'Which brand makes {index}?'
  - 'The maker of {index} is'
"""


class ItemToBrand(AlignmentTask):
    """The semantic ID of an item -> its brand: a seventh task, which the library does not have."""

    name, section = "item2brand", "none: a task of this test"
    template_kinds = {"": TemplateKind((INDEX,), "brand")}

    def texts(self, data: RecommendationData) -> dict[str, list[str]]:
        """Return every second item's brand."""
        return {"brand": [f"Brand {item}" if item % 2 else "" for item in range(data.num_items)]}

    def documents(self, source: DocumentSource) -> Documents:
        """Return a document for each item."""
        return source.items()


@pytest.fixture
def item_to_brand(tmp_path: Path) -> Iterator[Path]:
    """Register the seventh task, and write the file of its templates."""
    path = tmp_path / "brands.yaml"
    path.write_text(BRAND_TEMPLATES)
    alignment_task(ItemToBrand)
    yield path
    del ALIGNMENT_TASKS["item2brand"]


def corpus_of(data: RecommendationData, tokenizer: Any, **settings: Any) -> AlignmentCorpus:
    """Make a corpus of a data folder whose items get the codes of their number in base 7."""
    first = add_semantic_id_tokens(tokenizer, num_levels=2, codebook_size=7)
    items = np.arange(data.num_items)
    semantic_ids = SemanticIds(np.stack([items // 7, items % 7], axis=1).astype(np.int32), 7)
    return AlignmentCorpus(data, tokenizer, semantic_ids, first, on_missing_text="title-only", **settings)


def test_the_six_tasks_of_the_paper_in_their_order() -> None:
    names = ["seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain"]
    assert list(ALIGNMENT_TASKS) == names  # the order is part of the random seed of each task
    assert all(task.section.startswith("III-C, ") for task in ALIGNMENT_TASKS.values())
    assert added_tasks() == {"SEQ": names[:1], "+MUT": names[1:3], "+ASY": ["fusionseqrec"], "+ITE": ["itemsearch"]}


def test_the_table_in_the_docs_has_all_tasks_and_counts_their_templates() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| (\d+) \|$", CONCEPTS.read_text(encoding="utf-8"), re.MULTILINE)
    groups = load_templates().groups
    assert rows == [(name, str(sum(map(len, groups[name].values())))) for name in ALIGNMENT_TASKS]


def test_no_document_changes_unnoticed(data: RecommendationData) -> None:
    """Documents of two epochs as token ids of bytes, so that the checksum depends on no trained vocabulary."""
    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=257, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    bytes_only.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<end>", eos_token="<end>")
    assert len(tokenizer) == 257
    corpus = corpus_of(data, tokenizer, context_length=1024, reorder=0.5)
    with_intentions, without = hashlib.sha256(), hashlib.sha256()
    for epoch in range(2):
        numbers = corpus.documents(epoch)
        for task, row, counts in zip(corpus.tasks_of(numbers), *corpus.rows(numbers, epoch), strict=True):
            digest = with_intentions if task in ("itemsearch", "preferenceobtain") else without
            digest.update(row.astype("<i8").tobytes() + counts.tobytes())
    assert (len(corpus), without.hexdigest()) == (602, "1ebc99faf8cb2e1c8382ac54fb771e08ee81420c0652a1d115ef4856f892b181")
    assert with_intentions.hexdigest() == "1a2569e961459da72b8588e8680419e65dbcec32e948d61839ee10ce7a725bd4"


# ---- A seventh task ----


def test_a_seventh_task_is_one_class_and_one_entry(
    item_to_brand: Path, data: RecommendationData, tiny_backbones: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    settings = {"templates": load_templates(item_to_brand), "context_length": 256}
    corpus = corpus_of(data, tokenizer, tasks={"seqrec": 1, "item2brand": 1}, **settings)
    numbers = corpus.documents(0)
    numbers = numbers[corpus.tasks_of(numbers) == "item2brand"]
    assert len(numbers) == data.num_items // 2  # items without a brand are left out
    rows, counted = corpus.rows(numbers, 0)
    assert corpus.lengths(numbers, 0).tolist() == [len(row) for row in rows]
    texts = [(tokenizer.decode(row[1:]), tokenizer.decode(row[counts])) for row, counts in zip(rows, counted, strict=True)]
    end = tokenizer.eos_token
    for item, (text, response) in zip(range(1, data.num_items, 2), texts, strict=True):
        semantic_id = f"<a_{item // 7}><b_{item % 7}>"
        assert response == f"Brand {item}{end}"
        assert text in (f"Which brand makes{semantic_id}? Answer:{response}", f"The maker of{semantic_id} is Answer:{response}")
    assert len({text[:5] for text, _ in texts}) == 2  # both templates are drawn


def test_a_seventh_task_changes_no_document_of_the_six(
    item_to_brand: Path, data: RecommendationData, tiny_backbones: dict[str, Path]
) -> None:
    def rows(tasks: list[str], templates: Path | None) -> list[list[int]]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
        settings = {"templates": load_templates(templates), "context_length": 256, "tasks": dict.fromkeys(tasks, 0.5)}
        corpus = corpus_of(data, tokenizer, **settings)
        numbers = corpus.documents(1)
        return sorted(row.tolist() for row in corpus.rows(numbers[corpus.tasks_of(numbers) == "seqrec"], 1)[0])

    six = [name for name in ALIGNMENT_TASKS if name != "item2brand"]
    assert rows(["seqrec"], None) == rows(["seqrec"], item_to_brand)
    assert len(rows(six, None)) == len(rows([*six, "item2brand"], item_to_brand))


def test_a_seventh_task_trains(
    item_to_brand: Path, data: RecommendationData, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    points = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    folders = {"data": str(data.folder), "output": str(tmp_path / "index")}
    index_items(IndexArguments(**folders, num_levels=2, codebook_size=8, method="rk-means"), points)
    arguments = AlignArguments(
        data=str(data.folder),
        output=str(tmp_path / "run"),
        backbone=str(tiny_backbones["gpt2"]),
        index=str(tmp_path / "index"),
        tasks=["item2brand"],
        templates=str(item_to_brand),
        num_train_epochs=1,
        stop_after_steps=1,
        per_device_train_batch_size=8,
        num_beams=10,
        eval_users=5,
    )
    torch.manual_seed(0)
    model, progress = align(arguments)
    assert progress.step == 1 and model.num_items == data.num_items


def test_a_task_without_templates_names_what_is_missing(
    item_to_brand: Path, data: RecommendationData, tiny_backbones: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    with pytest.raises(ValueError, match="templates: there are none of item2brand; name a YAML file that has some"):
        corpus_of(data, tokenizer, tasks={"item2brand": 1}, context_length=256)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": "seqrec"}, "alignment task 'seqrec': the name is taken or is no identifier"),
        ({"name": "answer"}, "alignment task 'answer': the name is taken"),
        ({"name": "a=b"}, "alignment task 'a=b': the name is taken or is no identifier"),
        ({"subject": "user"}, "alignment task own: its documents are about users and have no index"),
        ({"template_kinds": {"": TemplateKind((INDEX,), PREFERENCE)}}, "its documents are about items and have no preference"),
        (
            {"template_kinds": {"": TemplateKind(("history", "title_history"), INDEX)}},
            "alignment task own: the templates of kind '' list a history twice; choose one slot",
        ),
    ],
)
def test_invalid_tasks(members: dict[str, Any], message: str) -> None:
    before = dict(ALIGNMENT_TASKS)
    with pytest.raises(ValueError, match=message):
        alignment_task(type("Own", (ItemToBrand,), {"name": "own", **members}))
    assert before == alignment_tasks.ALIGNMENT_TASKS


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, r"alignment task item2brand: texts\(\) fills \[\]; its slots need \['brand'\]"),
        ({"brand": ["one"]}, r"texts\(\) gives 1 texts for 'brand'; it must give one for each of 40 items"),
        (
            {"brand": [""] * 40},
            "item2brand has no documents, and no task is left: none of 40 has all texts of its templates",
        ),
    ],
)
def test_texts_that_do_not_fill_the_slots(
    texts: dict[str, list[str]],
    message: str,
    item_to_brand: Path,
    data: RecommendationData,
    tiny_backbones: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ItemToBrand, "texts", lambda *_: texts)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbones["gpt2"])
    with pytest.raises(ValueError, match=message):
        corpus_of(data, tokenizer, tasks={"item2brand": 1}, context_length=256, templates=load_templates(item_to_brand))


def test_a_task_must_define_its_documents() -> None:
    with pytest.raises(NotImplementedError, match=r"AlignmentTask must define documents\(source\)"):
        AlignmentTask().documents(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seqrek"], "tasks: 'seqrek' is no task; the tasks are seqrec, item2index"),
        (["seqrec=2"], r"tasks: 'seqrec=2' .* a share in \(0, 1\]"),
        (["seqrec=many"], "tasks: 'seqrec=many' has no number after the ="),
        ([], "tasks is empty; name at least one of seqrec"),
    ],
)
def test_words_that_name_no_task(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tasks(words)
