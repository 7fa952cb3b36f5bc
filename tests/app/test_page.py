"""What the events of the page do, without a browser."""

import pyarrow as pa
import pytest

gr = pytest.importorskip("gradio", reason="needs the extra app")

from modeling_cllm4rec.app.command import main  # noqa: E402
from modeling_cllm4rec.app.page import Page, build_page  # noqa: E402
from modeling_cllm4rec.app.turns import Conversation  # noqa: E402
from modeling_cllm4rec.app.user_history import UserHistory  # noqa: E402

FILTERS = {"words": "", "k": 3, "exclude_seen": True, "title_words": "", "ids": "", "beams": None}
FILTERS |= {"conversation": Conversation(), "last": []}


@pytest.fixture(scope="module")
def page(models) -> Page:
    return Page(models)


def test_a_history_is_composed(page):
    user_history, history, found, sentence = page.toggle("B2", UserHistory(), "soap 2")
    assert user_history == UserHistory(("B2",))
    assert "Remove Lavender soap 2" in history
    assert 'aria-pressed="true"' in found
    assert sentence == ""
    assert page.toggle("B2", user_history, "")[0] == UserHistory()
    cleared = page.clear("")
    assert cleared[0] == UserHistory() and cleared[4:] == (Conversation(), "", "")


def test_users_are_taken(page):
    user_history, history, _, sentence = page.take("ann", UserHistory(), "")
    assert user_history == UserHistory(("B0", "B3", "B5"), "ann")
    assert history.count("<li>") == 3
    assert "User ann, with 3 items." in sentence
    again, _, _, problem = page.take("bob", user_history, "")
    assert again == user_history
    assert "User “bob” is not among" in problem
    user, picked, *_ = page.pick("")
    assert picked.user == user


def test_lists_come_one_by_one_and_sentences_are_added(page):
    user_history = UserHistory(("B0",))
    first, second = page.recommend(user_history, **FILTERS)
    assert (len(first[0]), len(second[0])) == (1, 2)
    item = second[0][0].rows[0].item
    written, html = page.write("write-0", item, second[0], {}, user_history)
    assert list(written) == [(0, item)]
    assert html.count("<blockquote") == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": None}, "The number of recommendations is missing; give a whole number."),
        ({"k": 2.5}, "The number of recommendations is 2.5; give a whole number."),
        ({"beams": 1.5}, "The number of beams is 1.5; give a whole number."),
        ({"ids": "B77"}, "no item with the id “B77”"),
        ({"k": 400}, "“How many” is 400; allowed: a whole number from 1 to 15"),
    ],
)
def test_what_cannot_be_asked_gets_one_sentence(page, change, sentence):
    ((answers, html, *_),) = page.recommend(UserHistory(("B0",)), **{**FILTERS, **change})
    assert answers == []
    assert sentence in html


def test_turns_refine_the_question_and_limit_the_price(models, lcrec):
    from modeling_cllm4rec.app.answers import Question, ShownModels
    from modeling_cllm4rec.app.item_columns import ItemColumns

    prices = pa.table({"item_id": models.catalogue.ids.array, "price": [1 + number for number in range(15)]})
    page = Page(ShownModels([lcrec], ItemColumns.read(models.catalogue, prices)))
    user_history = UserHistory(("B0", "B3"))

    def ask(words, conversation, last):
        (found,) = page.recommend(user_history, **{**FILTERS, "words": words, "conversation": conversation, "last": last})
        return found

    answers, _, conversation, turns, field = ask("lavender", Conversation(), [])
    assert (conversation.query, field) == ("lavender", "") and "lavender" in turns
    answers, _, conversation, _, _ = ask("soap", conversation, answers)
    expected = page.models.answer(lcrec, Question(("B0", "B3"), k=3, query="lavender, soap"))
    assert [row.item for row in answers[0].rows] == [row.item for row in expected.rows]
    limit = answers[0].rows[0].price
    assert limit == 1 + models.catalogue.ids.indices_of([answers[0].rows[0].item])[0]
    dearer, _, more, turns, _ = ask("something more expensive", conversation, answers)
    assert more.query == "lavender, soap" and f"Above {limit:.2f}" in turns
    assert all(row.price > limit for row in dearer[0].rows)
    nothing, html, same, _, field = ask("cheaper", more, answers)
    assert nothing == [] and same is more and field == "cheaper" and "No item has such a price" in html
    unchanged, _, why, turns, field = ask("why this one?", more, dearer)
    assert unchanged is dearer and field == "" and why.query == more.query
    assert "is the likeliest of the items to choose from, with a probability of" in turns
    _, html, kept, _, field = ask("why number 9?", more, dearer)
    assert "No list has a number 9." in html and kept is more and field == "why number 9?"
    assert "There is no list yet" in ask("why?", Conversation(), [])[1]


def test_what_only_some_models_offer_is_shown_for_them_only(models, cllm4rec):
    from modeling_cllm4rec.app.answers import ShownModels

    def visible(blocks) -> dict[str, bool]:
        return {one.label: one.visible for one in blocks.blocks.values() if getattr(one, "label", None)}

    both, alone = visible(build_page(models)), visible(build_page(ShownModels([cllm4rec])))
    for label in ("Looking for, in words (LC-Rec)", "Beams of LC-Rec’s search"):
        assert both[label]
        assert not alone.get(label)


def test_the_command_says_where_the_page_is_and_nothing_of_sharing_it(saved, monkeypatch, capsys):
    monkeypatch.setattr(gr.Blocks, "block_thread", gr.Blocks.close)
    assert main(["--model", str(saved)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{saved} on http://127.0.0.1:") and not any("share" in line for line in said)
