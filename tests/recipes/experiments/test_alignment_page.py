"""The page of LC-Rec's alignment: its numbers by hand, its prompts, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from alignment_page import (
    Case,
    found_words,
    main,
    principal_components,
    render,
    share_of_words,
    title_prompts,
    token_rows,
    word_f1,
    write_titles,
)
from lcrec_models import HISTORIES, ITEMS, LEVELS, USERS, new_lcrec

from modeling_cllm4rec.corpora.preparation import prepare_tables
from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForCausalLM


def saved_model(folder: Path, backbone: Path) -> Path:
    """Save the tiny model with its tokenizer."""
    model, tokenizer = new_lcrec(backbone)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved_data(folder: Path, titles: bool = True) -> Path:
    """Prepare the users and items of the tiny model."""
    rows = [(user, item) for user, history in enumerate(([0, 3, 5], [1, 11, 2], HISTORIES[2])) for item in history]
    pairs = pa.table({"user_id": [USERS[user] for user, _ in rows], "item_id": [ITEMS[item] for _, item in rows]})
    items = pa.table({"item_id": ITEMS, **({"title": [f"lamp kind{n // 3}" for n in range(12)]} if titles else {})})
    prepare_tables(pairs, items, None, folder, split="leave-one-out", order="rows", keep_all_items=True)
    return folder


def test_words_by_hand() -> None:
    assert word_f1("the red lamp", "red lamp") == pytest.approx(0.8)  # 2 * 2 / (3 + 2)
    assert word_f1("lamp lamp", "lamp") == pytest.approx(2 / 3) and word_f1("", "lamp") == 0 == word_f1("", "")
    cases = [Case(0, "a b", ["a", "a b"]), Case(1, "c", ["a b", "c"])]
    own, chance = found_words(cases)
    assert own == pytest.approx([(2 / 3 + 0) / 2, 1]) and chance == pytest.approx([(0 + 1) / 2, 0])


def test_neighbours_by_hand() -> None:
    """Index tokens next to words count the words; those that lie apart count none."""
    words = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert share_of_words(words, np.array([[2.0, 0.1], [-1.0, 0.0]]), nearest=2) == pytest.approx((1 + 1) / 2)
    assert share_of_words(words, np.array([[-1.0, 0.0], [-1.0, -0.1]]), nearest=1) == 0
    mixed = np.random.default_rng(0).normal(size=(400, 8))
    assert share_of_words(mixed[:300], mixed[300:]) == pytest.approx(300 / 399, abs=0.03)


def test_components_keep_the_largest_variance() -> None:
    """Points on a line in three dimensions have their distances on the first component, and nothing on the second."""
    line = np.outer(np.array([0.0, 1.0, 4.0]), np.array([2.0, 2.0, 1.0]))
    points = principal_components(line)
    assert np.abs(np.diff(points[:, 0])) == pytest.approx([3, 9]) and points[:, 1] == pytest.approx([0, 0, 0])


def test_prompts_have_one_more_token_of_the_index_at_each_level(tmp_path: Path, tiny_backbones: dict[str, Path]) -> None:
    model = LCRecForCausalLM.from_pretrained(saved_model(tmp_path / "model", tiny_backbones["llama"])).eval()
    one, whole = title_prompts(model, np.array([3]), "What is {index} called?")[0]
    tokens = model.tokens_of(np.array([3]))[0].tolist()
    place = whole.index(tokens[0])
    assert whole[place : place + LEVELS] == tokens and whole[:place] + whole[place + 1 :] != whole
    assert one == whole[: place + 1] + whole[place + LEVELS :]
    assert len(write_titles(model, [one, whole], 3)) == 2
    words, index = token_rows(model, ["lamp kind0", "lamp"])
    assert len(index) == len(np.unique(model.tokens_of(np.arange(12)))) and words.shape[1] == index.shape[1]


def test_command(tmp_path: Path, tiny_backbones: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the page needs the extra benchmark")
    model, data = saved_model(tmp_path / "model", tiny_backbones["llama"]), saved_data(tmp_path / "data")
    output = tmp_path / "new" / "page.html"
    flags = ["--model", str(model), "--data", str(data), "--output", str(output), "--cases", "3", "--max-new-tokens", "2"]
    assert main([*flags, "--other", str(model)]) == 0
    printed, page = capsys.readouterr().out, output.read_text(encoding="utf-8")
    assert len(printed.partition("F1, own: ")[2].splitlines()[0].split()) == LEVELS
    assert "<td>lamp kind" in page and page.count("<svg") == 1 and "http" not in page.partition("<svg")[0]
    for changed, message in (
        (["--cases", "1"], "cases is 1; it must be 2 or more"),
        (["--model", str(tmp_path / "none")], "there is no model in"),
        (["--data", str(saved_data(tmp_path / "bare", titles=False))], "the items have no titles"),
    ):
        assert main([*flags, *changed]) == 2
        assert message in capsys.readouterr().err


def test_the_page_escapes_what_the_model_wrote() -> None:
    page = render("a&b", [Case(0, "<i>", ["<script>"]), Case(1, "x", ["y"])], "<svg></svg>", shown=2)
    assert "&lt;script&gt;" in page and "<script>" not in page and "a&amp;b" in page
