"""The page: its layout and events in Gradio; requests and answers are in `answers`, HTML is in `markup`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from modeling_cllm4rec.app.answers import Answer, Question, ShownModels
from modeling_cllm4rec.app.local_only import LocalOnly
from modeling_cllm4rec.app.markup import answer_lists, found_list, history_list, note, turns_list
from modeling_cllm4rec.app.turns import Conversation, asked_rank, is_why, next_turn
from modeling_cllm4rec.app.user_history import UserHistory, any_user, take_user
from modeling_cllm4rec.core.errors import InputError

HERE = Path(__file__).parent
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
STYLE = HERE / "page.css"
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="stone",
    radius_size="lg",
    font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    button_primary_text_color="white",
)
SHOWN_AT_ONCE = 8
"""Found items that are sent to the browser."""


class Page:
    """The event handlers of the page, which connect models and components, independent of the layout.

    Args:
        models: the models.
        seed: start of the random numbers that pick a user.
    """

    def __init__(self, models: ShownModels, seed: int = 0) -> None:
        self.models = models
        self.generator = np.random.default_rng(seed)

    def found(self, query: str, user_history: UserHistory) -> str:
        """Return the list of found items."""
        found = self.models.search.find(query, SHOWN_AT_ONCE)
        ids = self.models.catalogue.ids.ids_of(found.items)
        return found_list(list(zip(ids, self.models.titles(ids), strict=True)), found.total, user_history.history, query)

    def drawn(
        self, user_history: UserHistory, query: str, sentence: str = "", kind: str = "hint"
    ) -> tuple[UserHistory, str, str, str]:
        """Return the user's history and its HTML: history, found items, a sentence."""
        items = list(user_history.history)
        history = history_list(list(zip(items, self.models.titles(items), strict=True)))
        return user_history, history, self.found(query, user_history), note(sentence, kind)

    def toggle(self, item: str, user_history: UserHistory, query: str) -> tuple[UserHistory, str, str, str]:
        """Put an item, by its id as text, into the history, or take it out."""
        return self.drawn(user_history.toggled(self.models.catalogue.ids.parse([item])[0]), query, _of(user_history.user))

    def clear(self, query: str) -> tuple[UserHistory, str, str, str, Conversation, str, str]:
        """Return an empty history and an empty conversation, with an empty field for words."""
        return (*self.drawn(UserHistory(), query), Conversation(), "", "")

    def take(self, user: str, user_history: UserHistory, query: str) -> tuple[UserHistory, str, str, str]:
        """Load a known user; without such a user the history stays as it is."""
        try:
            return self.drawn(*_swapped(take_user(self.models.users, self.models.catalogue, user), query))
        except ValueError as error:
            return self.drawn(user_history, query, str(error), "problem")

    def pick(self, query: str) -> tuple[str, UserHistory, str, str, str]:
        """Load a random user and return the id for its field."""
        assert self.models.users is not None
        user = any_user(self.models.users, self.generator)
        return (user, *self.take(user, UserHistory(), query))

    def recommend(
        self,
        user_history: UserHistory,
        words: str,
        k: float | None,
        exclude_seen: bool,
        title_words: str,
        ids: str,
        beams: float | None,
        conversation: Conversation,
        last: list[Answer],
    ) -> Iterator[tuple[list[Answer], str, Conversation, str, str]]:
        """Yield the answers so far and their lists after each model, the conversation, its turns, and the field for words.

        Args:
            words: a further turn, or "" to ask again.
            conversation: the turns before it; last: the answers to them.
        """
        answers: list[Answer] = []
        try:
            if is_why(words):
                conversation = conversation.answered(words.strip(), self.models.why(last, asked_rank(words)))
                yield last, self.lists(last, {}), conversation, turns_list(conversation), ""
                return
            changed = conversation
            if words.strip():
                columns = self.models.columns
                changed = next_turn(conversation, words.strip(), self._reference(last), columns.prices is not None)
            question = Question(
                user_history.history,
                user_history.user,
                _whole("The number of recommendations", k),
                exclude_seen,
                self.models.candidates(title_words, ids, changed.within(self.models.columns.prices)),
                changed.query,
                None if beams is None else _whole("The number of beams", beams),
            )
            self.models.check(question)
        except ValueError as error:
            yield answers, note(str(error), "problem"), conversation, turns_list(conversation), words
            return
        for one in self.models.shown:
            answers = [*answers, self.models.answer(one, question)]
            yield answers, self.lists(answers, {}), changed, turns_list(changed), ""

    def _reference(self, answers: list[Answer]) -> tuple[str, float | None] | None:
        """Return the title and the price of the first item of the last answers, the first list that has one."""
        first = next((answer.rows[0] for answer in answers if answer.rows), None)
        return None if first is None else (first.title, first.price)

    def lists(self, answers: list[Answer], written: dict[tuple[int, str], str]) -> str:
        """Return the lists of answers as HTML."""
        return answer_lists(list(zip(self.models.shown, answers, strict=False)), written)

    def write(
        self, action: str, item: str, answers: list[Answer], written: dict[tuple[int, str], str], user_history: UserHistory
    ) -> tuple[dict[tuple[int, str], str], str]:
        """Add one generated sentence and return all sentences and the lists with them."""
        number = int(action.removeprefix("write-"))
        typed = self.models.catalogue.ids.parse([item])[0]
        written = {**written, (number, item): self.models.write(self.models.shown[number], typed, user_history.user)}
        return written, self.lists(answers, written)


def build_page(models: ShownModels) -> gr.Blocks:
    """Build the page for `launch`."""
    page, users = Page(models), models.users
    with gr.Blocks(title="cllm4rec", analytics_enabled=False) as blocks:
        user_history, answers, written = gr.State(UserHistory()), gr.State([]), gr.State({})
        conversation = gr.State(Conversation())
        _html(_head(models), elem_id="head")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=5, min_width=300, elem_id="asking"):
                _html("<h2>Who is it for?</h2>")
                find = _line("Find items by title", "Words of a title, or an item id", elem_id="find")
                found = _html(js_on_load=SCRIPT, elem_id="found")
                _html("<h3>History</h3>")
                history = _html(history_list([]), js_on_load=SCRIPT, elem_id="history")
                with gr.Row(elem_classes="inline", visible=users is not None):
                    user = _line("Or a known user", "User id", scale=3, min_width=240)
                    take = gr.Button("Take", scale=1, min_width=70)
                    pick = gr.Button("Any user", scale=1, min_width=90)
                who = _html(elem_id="who")
                turns = _html(elem_id="turns")
                label, example = _turn_field(models)
                words = _line(label, example, visible=models.read_words or models.columns.prices is not None)
                with gr.Accordion("Filters", open=False):
                    k = gr.Number(10, label="How many", precision=0)
                    exclude_seen = gr.Checkbox(True, label="Leave out items of the history")
                    title_words = _line("Only titles with these words")
                    ids = gr.Textbox("", label="Only these item ids, one a line", lines=2, max_lines=6)
                    beams = gr.Number(models.beams, label="Beams of LC-Rec’s search", precision=0, visible=models.searches)
                with gr.Row(elem_classes="inline"):
                    ask = gr.Button("Recommend", variant="primary", scale=3, min_width=140)
                    clear = gr.Button("Start over", scale=1, min_width=100)
            with gr.Column(scale=7, min_width=300, elem_id="answering"):
                _html("<h2>Recommendations</h2>")
                lists = _html(note("They appear here, with the reasons."), js_on_load=SCRIPT, elem_id="lists")

        def chosen(event: gr.EventData, who: UserHistory, query: str) -> tuple[UserHistory, str, str, str]:
            return page.toggle(event.item, who, query)

        def wanted(event: gr.EventData, so_far: list[Answer], sentences: dict[tuple[int, str], str], who: UserHistory) -> Any:
            return page.write(event.action, event.item, so_far, sentences, who)

        drawn = [user_history, history, found, who]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        find.change(page.found, [find, user_history], found, trigger_mode="always_last", **quiet)
        for one in (found, history):
            one.click(chosen, [user_history, find], drawn, **quiet)
        gr.on([take.click, user.submit], page.take, [user, user_history, find], drawn, **quiet)
        pick.click(page.pick, [find], [user, *drawn], **quiet)
        talk = [conversation, turns, words]
        clear.click(page.clear, [find], [*drawn, *talk], **quiet)
        inputs = [user_history, words, k, exclude_seen, title_words, ids, beams, conversation, answers]
        asked = gr.on([ask.click, words.submit], dict, None, written, **quiet)
        asked.then(page.recommend, inputs, [answers, lists, *talk], api_visibility="private")
        lists.click(wanted, [answers, written, user_history], [written, lists], api_visibility="private")
    return blocks


def launch(page: gr.Blocks, image_hosts: Sequence[str] = (), **settings: Any) -> Any:
    """Start the page's server with its style, offline: the browser may load nothing from other hosts but pictures of items.

    Args:
        image_hosts: hosts of the pictures (`ItemColumns.image_hosts`).
        settings: further arguments of `gradio.Blocks.launch` (`server_name`, `server_port`, ...).
    """
    return page.launch(
        theme=THEME,
        css_paths=STYLE,
        footer_links=[],
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(LocalOnly, image_hosts=image_hosts)]},
        **settings,
    )


def _line(label: str, placeholder: str | None = None, **settings: Any) -> gr.Textbox:
    return gr.Textbox("", label=label, placeholder=placeholder, max_lines=1, **settings)


def _turn_field(models: ShownModels) -> tuple[str, str]:
    """Return the label and the example of the field for words."""
    if models.read_words:
        return "Looking for, in words (LC-Rec)", "a gentle cleanser; then: something cheaper, why this one?"
    return "Something cheaper?", "something cheaper; why this one?"


def _html(value: str = "", **settings: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **settings)


def _head(models: ShownModels) -> str:
    named = ", ".join(f"{one.system} <b>{escape(one.name)}</b>" for one in models.shown)
    users = f" · {len(models.users):,} users" if models.users is not None else ""
    return f"<h1>cllm4rec</h1><p>{named} · {len(models.catalogue):,} items{users}</p>"


def _of(user: str | None) -> str:
    return "" if user is None else f"For user {user}, with this history."


def _swapped(taken: tuple[UserHistory, str], query: str) -> tuple[UserHistory, str, str]:
    return taken[0], query, taken[1]


def _whole(what: str, number: float | None) -> int:
    if number is None or number != int(number):
        raise InputError(f"{what} is {'missing' if number is None else number}; give a whole number.")
    return int(number)
