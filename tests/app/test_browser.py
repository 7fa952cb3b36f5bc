"""The page in a real browser: controlled by clicks and typed text. Skipped without a browser or gradio."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from modeling_cllm4rec.app.answers import Question, ShownModels

pytestmark = pytest.mark.slow
gradio = pytest.importorskip("gradio", reason="needs the extra app")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIND = "Find items by title"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")
TIMEOUT = 90_000
"""Milliseconds: only a page that never answers is waited for so long, even where other work takes all cores."""


@pytest.fixture(scope="module")
def address(models: ShownModels) -> Iterator[str]:
    from modeling_cllm4rec.app.page import build_page, launch

    page = build_page(models)
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as player:
        started = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """A page that was opened, with what it asked of other hosts and what went wrong in it."""

    def __init__(self, browser: sync_api.Browser, address: str, width: int = 1280, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.note(request.url, address))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.get_by_label(FIND).wait_for()

    def note(self, url: str, address: str) -> None:
        if not url.startswith((address.rstrip("/"), "data:", "blob:")):
            self.foreign.append(url)

    def find(self, words: str) -> None:
        self.page.get_by_label(FIND).fill(words)

    def fill(self, label: str, value: str) -> None:
        """Fill a field that is shown with its first value: a field that has just been opened would take that again."""
        field = self.page.get_by_label(label)
        sync_api.expect(field).to_be_visible(timeout=TIMEOUT)
        field.fill(value)
        field.press("Tab")
        sync_api.expect(field).to_have_value(value, timeout=TIMEOUT)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def add(self, title: str) -> None:
        self.page.get_by_role("button", name=f"{title}: add to the history", exact=True).click()
        self.page.get_by_role("list", name="History").get_by_text(title, exact=True).wait_for()

    def titles(self, heading: str, count: int) -> list[str]:
        section = self.page.get_by_role("region", name=heading)
        sync_api.expect(section.locator("li.card")).to_have_count(count, timeout=TIMEOUT)
        return [text.strip() for text in section.locator("li.card .title").all_inner_texts()]

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def says(self, sentence: str) -> None:
        self.page.get_by_text(sentence).first.wait_for()


@pytest.fixture
def visitor(browser, address) -> Iterator[Visitor]:
    one = Visitor(browser, address)
    yield one
    assert one.foreign == []
    assert one.errors == []
    assert "Traceback" not in one.page.content()
    one.page.context.close()


def focus_by_tab(page: sync_api.Page, name: str, presses: int = 40) -> None:
    """Press Tab until what is named so has the focus."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText") == name:
            return
    pytest.fail(f"Tab never reached {name!r}")


def test_by_keyboard_alone_an_item_is_found_a_history_built_and_ten_titles_got(visitor, models):
    page = visitor.page
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#find') !== null"):
            break
    page.keyboard.type("soap")
    page.get_by_role("list", name="Items found").wait_for()
    focus_by_tab(page, "Lavender soap 0: add to the history")
    page.keyboard.press("Enter")
    page.get_by_role("list", name="History").get_by_text("Lavender soap 0").wait_for()
    focused = "document.activeElement.getAttribute('aria-label')"
    page.wait_for_function(f"{focused} === 'Lavender soap 0: take out of the history'")  # the focus stays where it was
    focus_by_tab(page, "Lavender soap 2: add to the history")
    page.keyboard.press("Space")
    page.get_by_role("list", name="History").get_by_text("Lavender soap 2").wait_for()
    focus_by_tab(page, "Recommend")
    page.keyboard.press("Enter")
    for one, heading in zip(models.shown, ("CLLM4Rec beauty", "LC-Rec beauty-lcrec"), strict=True):
        expected = [row.title for row in models.answer(one, Question(("B0", "B2"))).rows]
        assert visitor.titles(heading, 10) == expected
    assert page.locator(".time").count() == 2


def test_items_are_removed_and_the_focus_moves_on(visitor):
    visitor.find("soap")
    visitor.add("Lavender soap 1")
    visitor.add("Lavender soap 3")
    remove = visitor.page.get_by_role("button", name="Remove Lavender soap 1")
    remove.focus()
    visitor.page.keyboard.press("Enter")
    remove.wait_for(state="detached")
    visitor.page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Remove Lavender soap 3'")


def test_an_empty_history_and_nonsense_get_a_sentence(visitor):
    visitor.press("Recommend")
    visitor.says("The history is empty. Find an item by its title and add it")
    visitor.find("qqzz xyzzy")
    visitor.says("No title holds “qqzz xyzzy”. Try fewer or shorter words.")
    query = visitor.page.get_by_label("Looking for, in words (LC-Rec)")
    query.fill("?!")
    visitor.press("Recommend")
    visitor.says("“Looking for, in words” is '?!'; allowed: a text with words.")
    query.fill("qqzz xyzzy")
    query.press("Enter")
    visitor.says("No title holds any word of “qqzz xyzzy”")


def test_known_users_and_filters(visitor):
    user = visitor.page.get_by_label("Or a known user")
    user.fill("bob")
    visitor.press("Take")
    visitor.says("User “bob” is not among the 3 known users")
    user.fill("user 1")
    user.press("Enter")
    visitor.says("User user 1, with 1 items.")
    visitor.page.get_by_role("button", name="Filters").click()
    visitor.fill("How many", "99")
    visitor.press("Recommend")
    visitor.says("“How many” is 99; allowed: a whole number from 1 to 15")
    visitor.fill("How many", "12")
    visitor.press("Recommend")
    visitor.says("“How many” is 12; allowed: 1 to 10, the number of beams of the search.")
    visitor.fill("How many", "2")
    visitor.page.get_by_label("Only titles with these words").fill("soap 1")
    visitor.page.get_by_label("Leave out items of the history").uncheck()
    visitor.press("Recommend")
    assert set(visitor.titles("CLLM4Rec beauty", 2)) <= {"Lavender soap 1", "Lavender soap 10", "Lavender soap 11"}
    visitor.press("Any user")
    visitor.says(" items.")
    visitor.press("Start over")
    visitor.says("Nothing yet.")


def test_the_model_says_why(visitor):
    visitor.find("soap")
    visitor.add("Lavender soap 1")
    visitor.press("Recommend")
    visitor.titles("CLLM4Rec beauty", 10)
    visitor.says("The score is the dot product of the item’s vector")
    visitor.says("ln p is the logarithm of the probability")
    near = visitor.page.locator(".why", has_text="in the history").all_inner_texts()
    assert len(near) == 20 and set(near) <= {"Nearest in the history", "Nothing near in the history"}
    visitor.page.get_by_role("button", name="What does the model say of").first.click()
    visitor.page.locator("blockquote").wait_for()


def test_turns(browser, lcrec):
    from modeling_cllm4rec.app.item_columns import ItemColumns
    from modeling_cllm4rec.app.page import build_page, launch

    catalogue = lcrec.model.catalogue
    first = ShownModels([lcrec]).answer(lcrec, Question(("B1",), query="lavender")).rows[0].item
    columns = {
        "item_id": catalogue.ids.array,
        "price": [1.0 if item == first else 2.0 for item in catalogue.ids.array.to_pylist()],
    }
    columns["image"] = [f"http://pictures.example/{number}.png" for number in range(15)]
    shown = ShownModels([lcrec], ItemColumns.read(catalogue, pa.table(columns), images="image"))
    page = build_page(shown)
    _, url, _ = launch(page, shown.columns.image_hosts, prevent_thread_lock=True, quiet=True)
    try:
        visitor = Visitor(browser, url)
        visitor.page.route("http://pictures.example/*", lambda route: route.fulfill(body=PIXEL, content_type="image/png"))
        visitor.find("soap")
        visitor.add("Lavender soap 1")
        field = visitor.page.get_by_label("Looking for, in words (LC-Rec)")
        for words, said in (
            ("lavender", "lavender"),
            ("more expensive", "Above 1.00, the price of"),
            ("why this one?", "is the likeliest of the items to choose from, with a probability of"),
        ):
            field.fill(words)
            field.press("Enter")
            visitor.says(said)
            sync_api.expect(field).to_have_value("", timeout=TIMEOUT)
        assert visitor.page.get_by_role("list", name="Turns").locator("li").count() == 3
        pictures = visitor.page.locator("img.picture")
        assert pictures.count() >= 1
        pictures.first.scroll_into_view_if_needed()
        visitor.page.wait_for_function("document.querySelector('img.picture').naturalWidth === 1")
        assert {url.rpartition("/")[0] for url in visitor.foreign} == {"http://pictures.example"}
        assert visitor.errors == []
        visitor.press("Start over")
        visitor.says("Nothing yet.")
        sync_api.expect(visitor.page.locator("#turns li")).to_have_count(0, timeout=TIMEOUT)
    finally:
        page.close()


def test_titles_are_text_and_no_html(visitor):
    visitor.find("onerror")
    visitor.add("<img src=x onerror=alert(1)> ${1+1} {{value}}")
    assert visitor.page.locator("#asking img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser, address, scheme):
    phone = Visitor(browser, address, width=360, scheme=scheme)
    assert phone.overflow() <= 0
    phone.find("e")
    phone.add("Crème brûlée")
    phone.page.get_by_role("button", name="Filters").click()
    phone.press("Recommend")
    phone.titles("LC-Rec beauty-lcrec", 10)
    assert phone.overflow() <= 0
    boxes = [box for box in (one.bounding_box() for one in phone.page.locator("button:visible, input:visible").all()) if box]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)
    take, pick = (phone.page.get_by_role("button", name=name, exact=True).bounding_box() for name in ("Take", "Any user"))
    assert take["y"] == pick["y"] and take["x"] < pick["x"]  # side by side
    assert phone.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(250, 248, 245)" if scheme == "light" else "rgb(23, 21, 19)"
    )


def test_every_control_has_a_name(visitor):
    visitor.page.get_by_role("button", name="Filters").click()
    visitor.page.get_by_label("How many").wait_for()
    nameless = visitor.page.evaluate(
        "[...document.querySelectorAll('input, textarea, button')].filter((one) => one.offsetParent"
        " && !(one.labels?.length || one.getAttribute('aria-label') || one.innerText.trim())).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_the_command_refuses_in_one_line(capsys, tmp_path):
    from modeling_cllm4rec.app.command import main

    assert main(["--model", str(tmp_path / "nothing")]) == 2
    assert "is no folder with a model" in capsys.readouterr().err


def test_a_space_is_the_same_page(saved: Path, browser, tmp_path, monkeypatch):
    """`app.py` of a Space, with the model's name replaced by a folder."""
    import gradio as gr

    from modeling_cllm4rec.app.space import space_files

    code = space_files(["you/beauty"], "x", ["y"], "6.31.0")["app.py"].replace("you/beauty", str(saved))
    started: list[tuple[gr.Blocks, str]] = []
    real = gr.Blocks.launch

    def launch(blocks: gr.Blocks, **settings: object) -> object:
        result = real(blocks, prevent_thread_lock=True, quiet=True, **settings)
        started.append((blocks, result[1]))
        return result

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    exec(compile(code, "app.py", "exec"), {})  # noqa: S102 - what the export wrote
    blocks, url = started[0]
    try:
        Visitor(browser, url).page.get_by_text("15 items").first.wait_for()
    finally:
        blocks.close()
