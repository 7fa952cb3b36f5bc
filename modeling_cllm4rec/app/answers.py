"""Requests of the page and answers of the models, independent of the page itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.app.item_columns import ItemColumns
from modeling_cllm4rec.app.reasons import near_in_history, score_in_words, score_meaning
from modeling_cllm4rec.app.title_search import TitleSearch
from modeling_cllm4rec.core.catalogue import Catalogue, KnownUsers, Recommendations
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.questions import Question as CheckedQuestion
from modeling_cllm4rec.core.questions import QuestionError
from modeling_cllm4rec.core.recommender import RecommenderModel
from modeling_cllm4rec.hub.loading import load_recommender
from modeling_cllm4rec.systems import resolve, system_of

LABELS = {"k": "How many", "num_beams": "Beams of LC-Rec’s search", "queries": "Looking for, in words"}
"""Argument of a question -> what the page calls it."""
ALL_SEEN = "No item is left to recommend: the history holds all items to choose from."
EMPTY_HISTORY = "The history is empty. Find an item by its title and add it, or take a known user."


class Near(NamedTuple):
    """An item of the history near a recommended one, the cosine of their vectors, and its rank by that in the catalogue."""

    title: str
    cosine: float
    rank: int


class Recommended(NamedTuple):
    """One place of a list.

    Attributes:
        item: external id; title: its title, the id where there is none.
        rank: from 1; score: the model's.
        near: the items of the history that are near it; None for a question without a history.
        price: None where it is unknown; image: address of its picture, None where there is none.
    """

    item: Any
    title: str
    rank: int
    score: float
    near: list[Near] | None = None
    price: float | None = None
    image: str | None = None


@dataclass(frozen=True)
class Question:
    """A request of the page.

    Attributes:
        history: external item ids, oldest first.
        user: external id of a known user, as text; None for an unknown user.
        k: how many.
        exclude_seen: recommend nothing of the history.
        candidates: external item ids to choose from; None for the whole catalogue.
        query: text query, which LC-Rec reads; "" for none.
        num_beams: beams of LC-Rec's search; None for the model's own number.
    """

    history: tuple[Any, ...] = ()
    user: str | None = None
    k: int = 10
    exclude_seen: bool = True
    candidates: tuple[Any, ...] | None = None
    query: str = ""
    num_beams: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answer of one model.

    Attributes:
        rows: the list, best first.
        milliseconds: time of the model's answer alone.
        message: a sentence to be read with the list, or instead of it; "" for none.
        hybrid: whether the scores are sums with those of the model's linear parts, which a search does without.
    """

    rows: tuple[Recommended, ...] = ()
    milliseconds: float = 0.0
    message: str = ""
    hybrid: bool = False


@dataclass(frozen=True)
class ShownModel:
    """A model on the page.

    Attributes:
        name: the last part of its folder's or Hub name.
        model: the recommender.
        writer: object with `write(item, user)`, None where the system writes no sentences about items.
    """

    name: str
    model: RecommenderModel
    writer: Any = None

    @property
    def system(self) -> str:
        """Title of its system, such as `"LC-Rec"`."""
        return system_of(self.model).title

    @property
    def reads_words(self) -> bool:
        """Return whether it answers queries."""
        return self.model.reads_queries

    def score_name(self, answer: Answer) -> str:
        """Return the name of the scores of an answer."""
        return "score" if answer.hybrid else self.model.score_name

    def score_meaning(self, answer: Answer) -> str:
        """Return what the scores of an answer say, in a sentence."""
        return score_meaning(self.model, answer.hybrid)


class ShownModels:
    """The models side by side, over one catalogue.

    Args:
        shown: one or more models.
        columns: prices and pictures of the items; None for those of the catalogue's own table.

    Attributes:
        catalogue: that of the first model.
        search: its titles.
        users: the users of the first model that knows any, None if none does.

    Raises:
        InputError: no model, a model without a catalogue, or models of different catalogues.
    """

    def __init__(self, shown: list[ShownModel], columns: ItemColumns | None = None) -> None:
        if not shown:
            raise InputError("no model was given; name one or more")
        for one in shown:
            if one.model.catalogue is None:
                raise InputError(f"{one.name} has no catalogue, so its items have no names; save it with one")
        self.shown = shown
        self.catalogue: Catalogue = shown[0].model.catalogue  # type: ignore[assignment]
        for one in shown[1:]:
            _check_same_items(shown[0], one)
        self.search = TitleSearch(self.catalogue)
        self.columns = ItemColumns.read(self.catalogue) if columns is None else columns
        self.users: KnownUsers | None = next((one.model.users for one in shown if one.model.users is not None), None)

    @classmethod
    def load(
        cls, names: list[str], items: Any = None, images: str | None = None, prices: str | None = None, **placement: Any
    ) -> ShownModels:
        """Load models from folders or from the Hub, and let each answer once, so that the first answer is not the slowest.

        Args:
            items, images, prices: see `ItemColumns.read`.
            placement: `device`, `dtype`, `attn_implementation` and `device_map` of `load_recommender`.

        Raises:
            OSError, ValueError: as `load_recommender` and `ShownModels`.
        """
        loaded = [(name, load_recommender(name, "models", **placement)) for name in names]
        models = cls([ShownModel(Path(name).name, model, _writer(model, name)) for name, model in loaded])
        models.columns = ItemColumns.read(models.catalogue, items, images=images, prices=prices)
        first = models.catalogue.ids.ids_of([0])
        for one in models.shown:
            one.model.recommend(histories=[first], k=1, exclude_seen=False)
        models.search.find("a", 1)
        return models

    @property
    def read_words(self) -> bool:
        """Return whether any model answers queries."""
        return any(one.reads_words for one in self.shown)

    @property
    def searches(self) -> bool:
        """Return whether any model has a search, whose beams can be chosen."""
        return any("num_beams" in one.model.search_settings for one in self.shown)

    @property
    def beams(self) -> int | None:
        """Beams of the first model that recommends by its search, None if none does: beams would keep others from their way."""
        configs = [one.model.config for one in self.shown if "num_beams" in one.model.search_settings]
        return next((config.search_beams for config in configs if config.scoring == "beam"), None)

    def title(self, item: Any) -> str:
        """Title of an item by its external id; the id where it has none."""
        return self.titles([item])[0]

    def titles(self, items: list[Any]) -> list[str]:
        """Titles of items by their external ids; the id where there is none."""
        found = self.catalogue.titles(self.catalogue.ids.indices_of(items))
        return [title or str(item) for item, title in zip(items, found, strict=True)]

    def candidates(self, title_words: str, ids: str, within: np.ndarray | None = None) -> tuple[Any, ...] | None:
        """External ids of the items that may be recommended: those that satisfy all conditions.

        Args:
            title_words: items whose title holds all these words; "" for any.
            ids: item ids, one a line; "" for any.
            within: item indices, such as those within limits on the price; None for any.

        Returns:
            None without conditions: the whole catalogue.

        Raises:
            InputError: unknown ids, or a choice that leaves nothing.
        """
        lines = [line.strip() for line in ids.splitlines() if line.strip()]
        if not lines and not title_words.strip() and within is None:
            return None
        rows = self._indices(lines) if lines else np.arange(len(self.catalogue))
        if within is not None:
            rows = np.intersect1d(rows, within)
            if not len(rows):
                raise InputError("No item has such a price. Start over, or compare with another item.")
        if title_words.strip():
            rows = np.intersect1d(rows, self.search.all_with(title_words))
        if not len(rows):
            raise InputError("No item satisfies the filters. Ask for fewer words in the title, or for other ids.")
        return tuple(self.catalogue.ids.ids_of(rows))

    def _indices(self, words: list[str]) -> np.ndarray:
        try:
            found = self.catalogue.ids.indices_of(self.catalogue.ids.parse(words), "skip")
        except ValueError as error:
            raise InputError(f"The ids of the items are whole numbers, and not all of {words[:5]} are.") from error
        unknown = [word for word, index in zip(words, found, strict=True) if index < 0]
        if unknown:
            listed = ", ".join(f"“{word}”" for word in unknown[:5])
            raise InputError(f"The catalogue has no item with the id {listed}. Correct the ids to choose from, one a line.")
        return np.unique(found)

    def check(self, question: Question) -> None:
        """Raise InputError, in a sentence for the page, if no model could answer a question."""
        refused: InputError | None = None
        for one in self.shown:
            try:
                _read(one, question)
            except InputError as error:
                # Of a question in words, the model that reads them names the mistake.
                if refused is None or (question.query and one.reads_words):
                    refused = error
            else:
                return
        assert refused is not None
        raise refused

    def answer(self, one: ShownModel, question: Question) -> Answer:
        """Return the answer of one model; a request that it cannot answer gets a message instead of an exception."""
        try:
            started = time.perf_counter()
            asked, message = _read(one, question)
            table = Recommendations(pa.concat_tables(one.model.iter_answers(asked)))
            milliseconds = 1000 * (time.perf_counter() - started)
        except ValueError as error:
            return Answer(message=str(error))
        if one.reads_words and question.query and not self.search.knows_a_word(question.query):
            message = f"No title holds any word of “{question.query}”, so take this list with a grain of salt."
        if not len(table):
            message = ALL_SEEN
        return Answer(self._rows(one, table, question), milliseconds, message, one.model.adds_linear_parts(asked))

    def _rows(self, one: ShownModel, table: Recommendations, question: Question) -> tuple[Recommended, ...]:
        rows = table.to_pylist()
        ids = self.catalogue.ids
        items = [row["item"] for row in rows]
        indices = ids.indices_of(items)
        near = near_in_history(one.model, indices, ids.indices_of(question.history))
        found = []
        for row, title, index, others in zip(rows, self.titles(items), indices.tolist(), near, strict=True):
            named = self.titles(ids.ids_of([other.item for other in others]))
            reasons = [Near(name, other.cosine, other.rank) for name, other in zip(named, others, strict=True)]
            asked = reasons if question.history else None
            price, image = self.columns.price(index), self.columns.image(index)
            found.append(Recommended(row["item"], title, row["rank"], row["score"], asked, price, image))
        return tuple(found)

    def why(self, answers: Sequence[Answer], rank: int) -> str:
        """Return the reasons for the item of a rank in each list, in sentences.

        Raises:
            InputError: no list has that many items.
        """
        sentences = []
        for one, answer in zip(self.shown, answers, strict=False):
            for row in answer.rows:
                if row.rank == rank:
                    said = score_in_words(one.model, row.rank, row.score, answer.hybrid)
                    sentences.append(f"{one.system}: “{row.title}” is {said}. {self._nearness(row)}".strip())
        if not sentences:
            listed = any(answer.rows for answer in answers)
            raise InputError(f"No list has a number {rank}." if listed else "There is no list yet. Ask for one first.")
        return " ".join(sentences)

    def _nearness(self, row: Recommended) -> str:
        if row.near is None:
            return ""
        if not row.near:
            return "No item of the history is near it."
        named = " and ".join(f"“{near.title}” (number {near.rank} of {len(self.catalogue):,})" for near in row.near)
        return f"Nearest to it in the history: {named}."

    def write(self, one: ShownModel, item: Any, user: str | None) -> str:
        """Return a sentence of a model's content LM about an item."""
        assert one.writer is not None
        index = int(self.catalogue.ids.indices_of([item])[0])
        written = one.writer.write(index, user_index(one.model.users, user))
        return written or "The language model has nothing to say of this item."


def user_index(users: KnownUsers | None, user: str | None) -> int | None:
    """Index of a user by the id as text; None where there is no such user.

    Example:
        >>> user_index(KnownUsers([17, 4]), "4")
        1
    """
    if users is None or user is None:
        return None
    try:
        index = int(users.ids.indices_of(users.ids.parse([user]), "skip")[0])
    except ValueError:
        return None
    return index if index >= 0 else None


def _read(one: ShownModel, question: Question) -> tuple[CheckedQuestion, str]:
    """Return a question as the model reads it, and a remark on the answer.

    Raises:
        InputError: the model cannot answer; the message is a sentence for the page.
    """
    model = one.model
    settings: dict[str, Any] = {"k": question.k, "exclude_seen": question.exclude_seen, "candidates": question.candidates}
    if "num_beams" in model.search_settings:
        settings["num_beams"] = question.num_beams
    histories = [question.history] if question.history else None
    remark = ""
    if question.query and one.reads_words:
        asked: dict[str, Any] = {"queries": [question.query], "histories": histories}
    else:
        remark = f"{one.system} reads no queries here: it answers for the history alone." if question.query else ""
        index = user_index(model.users, question.user) if model.reads_users else None
        if index is not None and model.users is not None:
            asked = {"users": model.users.ids.ids_of([index]), "histories": [question.history]}
        elif histories is None:
            if question.user is not None and not model.reads_users:
                raise InputError(f"{one.system} reads the items of a history, not user ids. Add an item to the history.")
            raise InputError(remark.partition(":")[0] + ". Add an item to the history." if remark else EMPTY_HISTORY)
        else:
            asked = {"histories": histories}
            if question.user is not None and model.reads_users:
                remark = f"{one.name} does not know the user “{question.user}”: it answers for the history alone."
    try:
        return model.read_question(**asked, **settings), remark
    except QuestionError as error:
        label = LABELS.get(error.argument.partition("[")[0], error.argument)
        raise InputError(f"“{label}” is {error.value!r}; allowed: {error.allowed}.") from error


def _writer(model: RecommenderModel, name: str) -> Any:
    target = system_of(model).writer
    return resolve(target)(model, name) if target else None


def _check_same_items(first: ShownModel, other: ShownModel) -> None:
    ours: Catalogue = first.model.catalogue  # type: ignore[assignment]
    theirs: Catalogue = other.model.catalogue  # type: ignore[assignment]
    if ours.ids.fingerprint == theirs.ids.fingerprint:
        return
    shared = len(set(ours.ids.array.to_pylist()) & set(theirs.ids.array.to_pylist()))
    raise InputError(
        f"models: {first.name} and {other.name} recommend from different catalogues ({len(ours)} and {len(theirs)} items, "
        f"{shared} in common), so their lists cannot be shown side by side; train both on one data folder, or show them one at "
        "a time"
    )
