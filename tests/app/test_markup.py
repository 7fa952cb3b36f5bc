"""Lists as HTML: texts of users and items are escaped, and lists and buttons have their HTML elements."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from modeling_cllm4rec.app.answers import Answer, Near, Recommended
from modeling_cllm4rec.app.markup import answer_lists, found_list, history_list, note, turns_list
from modeling_cllm4rec.app.turns import Conversation

BAD = "<img src=x onerror=alert(1)> \"'& ${1+1}"


class Reader(HTMLParser):
    """Collects the tags, the attributes and the text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "img":
            self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@given(st.text(max_size=30), st.text(max_size=30))
def test_titles_and_ids_are_text_whatever_they_hold(title, item):
    for html in (found_list([(item, title)], 1, [], "query"), history_list([(item, title)])):
        page = Reader(html)
        assert {tag for tag, _ in page.tags} <= {"ul", "ol", "li", "button", "span", "p"}
        assert len(page.named("button")) == 1


def test_what_is_found():
    page = Reader(found_list([("B1", BAD), ("B2", "Soap")], 12, ["B2"], "so"))
    first, second = page.named("button")
    assert (first["data-action"], first["data-item"], first["aria-pressed"]) == ("toggle", "B1", "false")
    assert first["aria-label"] == f"{BAD}: add to the history"
    assert (second["aria-label"], second["aria-pressed"]) == ("Soap: take out of the history", "true")
    assert BAD in page.text
    assert "12 found, the first 2 shown" in page.text
    assert found_list([], 0, [], " ") == ""
    assert "No title holds “zzz”" in found_list([], 0, [], "zzz")


def test_the_history():
    assert "Nothing yet" in history_list([])
    (remove,) = Reader(history_list([("B1", "Soap")])).named("button")
    assert (remove["data-action"], remove["aria-label"]) == ("remove", "Remove Soap")


def test_answers_side_by_side(cllm4rec, lcrec):
    ours = Answer((Recommended("B1", BAD, 1, 2.5, [Near("Soap", 0.75, 3)]), Recommended("B2", "Kit", 2, 1, [])), 12.4)
    theirs = Answer((Recommended("B2", "Kit", 1, -3.25),), 80, "A remark")
    page = Reader(answer_lists([(cllm4rec, ours), (lcrec, theirs)], {(0, "B2"): "it <b>smells</b>"}))
    assert [section["aria-label"] for section in page.named("section")] == ["CLLM4Rec beauty", "LC-Rec beauty-lcrec"]
    assert [one["data-action"] for one in page.named("button")] == ["write-0"]  # B2's is written, LC-Rec cannot
    for words in (
        BAD,
        "Soap 0.75, № 3",
        "12 ms",
        "80 ms",
        "ln p -3.25",
        "score 2.50",
        "it <b>smells</b>",
        "A remark",
        "no probability",
        "logarithm",
    ):
        assert words in page.text
    assert "no probability" in page.text and "logarithm" in page.text
    assert page.text.count("Nothing near in the history") == 1  # LC-Rec was asked without a history
    assert page.named("img") == []
    assert "also № 1 of LC-Rec" in page.text
    assert "also № 2 of CLLM4Rec" in page.text
    failed = Reader(answer_lists([(lcrec, Answer(message="It < cannot."))], {}))
    assert "It < cannot." in failed.text
    assert " ms" not in failed.text


def test_pictures_and_prices(lcrec):
    address = "https://images.example/a.jpg?x=1&y=2"
    rows = (Recommended("B1", "Soap", 1, -1.0, [], 12.5, address), Recommended("B2", "Kit", 2, -2.0, []))
    page = Reader(answer_lists([(lcrec, Answer(rows, 1))], {}))
    (picture,) = page.named("img")
    assert (picture["src"], picture["alt"], picture["referrerpolicy"]) == (address, "", "no-referrer")
    assert "12.50" in page.text


def test_turns():
    assert turns_list(Conversation()) == ""
    page = Reader(turns_list(Conversation().with_words(BAD, "as <words>").with_words("soap")))
    assert BAD in page.text and "as <words>" in page.text and len(page.named("li")) == 2
    assert {tag for tag, _ in page.tags} == {"ol", "li", "span"}


def test_a_note():
    assert note("") == ""
    assert Reader(note("a < b", "problem")).text == "a < b"
