"""Intentions (queries for items) and preferences of users, extracted from the texts by rules.

In the paper (section III-C of LC-Rec, arXiv 2311.09049) a large language model writes them; `intention_writer.py` does so
with any model. The rules here need none: distinctive words of an item, by tf-idf over the catalogue, its rarest category, and
a sentence of a review. Only reviews of training pairs and training histories are read.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import DESCRIPTION, TITLE, clean_text, item_texts

RULES = "extracted by rules from titles, descriptions, categories and training reviews"
FIELD_WEIGHTS = {TITLE: 3, "categories": 2, DESCRIPTION: 1}
REVIEW_WEIGHT = 1
TOP_WORDS = 6
"""Words of an item that queries draw from."""
RECENT_ITEMS = 3
"""Items of a history that a short-term preference is about; a long-term one is about those before."""

_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:[-'’][^\W\d_]+)*(?!\w)")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_STOP_WORDS = frozenset(
    "a about above after again against all almost also although always am among an and another any anything are around as at "
    "away back be became because been before being below best better between both but by came can cannot come comes could did "
    "do does doing done down during each either else enough etc even ever every everything few find first for from full get "
    "gets getting give given gives go goes going good got great had has have having he her here hers him his how however i if "
    "in including inside instead into is it its itself just keep know last least less let like little long look looking lot "
    "made make makes making many may me might mine more most much must my need needs never new next no none nor not nothing now "
    "of off often old on once one only or other others our ours out outside over own per perfect perhaps please put quite "
    "rather really right said same say says see seem seems several shall she should simply since so some something soon still "
    "such sure take takes than that the their them then there these they thing things this those though through thus to today "
    "together too took toward try two under until up upon us use used using very want wanted was way we well went were what "
    "when where whether which while who whole whom whose "  # codespell:ignore whom
    "why will with within without works would yet you your yours".split()
)
_REQUESTS = ("I am looking for {kind}: {words}.", "I need {kind}, with {words} in mind.", "Do you have {kind}? {words}.")
_REQUESTS_OF_NO_KIND = ("I am looking for {words}.", "Do you have anything with {words}?", "I need this: {words}.")
_TASTES = (
    "Often chooses {kind}; cares about {words}.",
    "Likes {kind}. What counts: {words}.",
    "Mostly {kind}, with an eye for {words}.",
)
_TASTES_OF_NO_KIND = ("Cares about {words}.", "What counts: {words}.", "Has an eye for {words}.")
_LASTING_TASTES = ("For a long time {kind}; cared about {words}.", "From early on {kind}, with an eye for {words}.")
_LASTING_TASTES_OF_NO_KIND = ("For a long time cared about {words}.", "From early on with an eye for {words}.")
_RECENT_TASTES = ("Lately {kind}; cares about {words}.", "At present {kind}, with an eye for {words}.")
_RECENT_TASTES_OF_NO_KIND = ("Lately cares about {words}.", "At present with an eye for {words}.")
_WISHES = ("I care about {words}.", "What I want: {words}.", "It should be about {words}.")
_ABOUT_ONESELF = frozenset("i i'd i'll i'm i've me mine my myself our us we we're we've".split())


@dataclass(frozen=True)
class Intentions:
    """Texts for the tasks of user intention and preference.

    Attributes:
        queries: for each of J items one query or more that it answers.
        preferences: for each of I users texts on their taste, after all training items but the last: general, long-term and
            short-term. None for users with fewer than two.
        user_queries: for each of I users the intentions behind the last training item, from the user's own review of it: what
            the user wants, and what the item should be like. None without a review.
        source: origin of the texts, for the model card.
    """

    queries: list[list[str]]
    preferences: list[list[str]]
    user_queries: list[list[str]]
    source: str


@dataclass(frozen=True)
class ItemWords:
    """Distinctive words of an item.

    Attributes:
        words: up to `TOP_WORDS` words, best first; scores: their scores.
        order: the same words in the order of the item's texts.
        kind: its rarest category, empty if there is none.
    """

    words: list[str]
    scores: list[float]
    order: list[str]
    kind: str


def extract_intentions(data: RecommendationData, seed: int = 0, max_history: int = 20) -> Intentions:
    """Return intentions and preferences by rules, the same for the same data and seed.

    Three queries for each item: keywords, a request, and a sentence (of a training review, else of its description). Two
    intentions of each user with a review of the last training item, by user and by item: a sentence of the review with
    "I" or "my", else a wish with its words, and a request with those words that the item has. Three preferences of each
    user: general, on the last `max_history` items before the last one; short-term, on the last `RECENT_ITEMS` of these;
    long-term, on those before. A user with no more than `RECENT_ITEMS` such items has the general one only.

    Args:
        seed: start of the random numbers that choose words and wordings.
        max_history: most items of a history that a preference is about, the last ones before the last item.

    Raises:
        InputError: items without a title.
    """
    texts = item_texts(data.items, (TITLE, DESCRIPTION), "title-only")
    reviews = reviews_of_items(data)
    brands = _brand_words(data.items)
    counts = _word_counts(data.items, texts, reviews, brands)
    rarity = _rarity(counts)
    kinds = _kinds(data.items)
    items = [_item_words(count, rarity, kind) for count, kind in zip(counts, kinds, strict=True)]
    draws = np.random.default_rng((seed, 0)).random((data.num_items, 2, TOP_WORDS + 1))
    queries = []
    for item, words in enumerate(items):
        sentence = _best_sentence([*reviews[item], texts[DESCRIPTION][item]], words, brands[item])
        queries.append(_queries(words, texts[TITLE][item], sentence, draws[item]))
    preferences = _preferences(data, items, brands, rarity, seed, max_history)
    return Intentions(queries, preferences, _user_queries(data, items, brands, rarity, seed), RULES)


def words_of(text: str) -> list[str]:
    """Return the content words of a text: lower case, three letters or more, no stop words, no numbers.

    Example:
        >>> words_of("The SPP6 is a hard-start kit for 3 fans!")
        ['hard-start', 'kit', 'fans']
    """
    return [word for word in _lower_words(text) if len(word) > 2 and word not in _STOP_WORDS]


def training_histories(data: RecommendationData) -> list[np.ndarray]:
    """Return the item indices of each user's training history, in order."""
    histories = data.histories("train")
    return np.split(histories.items, histories.indptr[1:-1])


def reviews_of_items(data: RecommendationData) -> list[list[str]]:
    """Return each item's training reviews, in the order of the folder."""
    reviews: list[list[str]] = [[] for _ in range(data.num_items)]
    table = data.reviews()
    for item, review in zip(table["item_index"].to_pylist(), table["review"].to_pylist(), strict=True):
        reviews[item].append(clean_text(review))
    return reviews


def reviews_of_last_items(data: RecommendationData) -> list[tuple[int, str]]:
    """Return for each user the last training item and the user's review of it, which is empty where there is none.

    The item is -1 for users with fewer than two training items.
    """
    last = [int(history[-1]) if len(history) > 1 else -1 for history in training_histories(data)]
    table, texts = data.reviews(), [""] * len(last)
    columns = (table[name].to_pylist() for name in ("user_index", "item_index", "review"))
    for user, item, review in zip(*columns, strict=True):
        if item == last[user]:
            texts[user] = clean_text(review)
    return list(zip(last, texts, strict=True))


def _brand_words(items: pa.Table) -> list[set[str]]:
    if "brand" not in items.column_names:
        return [set()] * items.num_rows
    return [set(_WORD.findall(clean_text(brand).lower())) for brand in text_column(items, "brand")]


def _word_counts(
    items: pa.Table, texts: dict[str, list[str]], reviews: list[list[str]], brands: list[set[str]]
) -> list[Counter[str]]:
    """Count the words of each item's texts, weighted by field, without brands, in order of appearance."""
    fields = dict(texts)
    if "categories" in items.column_names:
        fields["categories"] = [clean_text(text) for text in text_column(items, "categories")]
    counts: list[Counter[str]] = []
    for item in range(items.num_rows):
        count: Counter[str] = Counter()
        for field, column in fields.items():
            for word in words_of(column[item]):
                count[word] += FIELD_WEIGHTS[field]
        for review in reviews[item]:
            for word in words_of(review):
                count[word] += REVIEW_WEIGHT
        for word in brands[item]:
            del count[word]
        counts.append(count)
    return counts


def _rarity(counts: list[Counter[str]]) -> dict[str, float]:
    """Return ln(J / items with the word) for words of two items or more: a word of one item is a name, not a wish."""
    items_with = Counter(word for count in counts for word in count)
    return {word: math.log(len(counts) / number) for word, number in items_with.items() if number > 1}


def _item_words(count: Counter[str], rarity: dict[str, float], kind: str) -> ItemWords:
    known = [word for word in count if word in rarity] or list(count)
    scores = {word: (1 + math.log(count[word])) * rarity.get(word, 1.0) for word in known}
    best = sorted(known, key=lambda word: (-scores[word], word))[:TOP_WORDS]
    return ItemWords(best, [scores[word] for word in best], [word for word in known if word in best], kind)


def _kinds(items: pa.Table) -> list[str]:
    """Return each item's rarest category that another item shares, the last of equally rare ones, in lower case."""
    if "categories" not in items.column_names:
        return [""] * items.num_rows
    lists = [
        [part.strip() for part in clean_text(text).lower().split(",") if part.strip()]
        for text in text_column(items, "categories")
    ]
    size = Counter(name for names in lists for name in set(names))
    kinds = []
    for names in lists:
        shared = [name for name in reversed(names) if size[name] > 1] or names[::-1]
        kinds.append(min(shared, key=lambda name: size[name], default=""))
    return kinds


def _best_sentence(texts: Iterable[str], words: ItemWords, brand: set[str]) -> str:
    """Return the sentence of 4 to 20 words, without the brand, with the best words, from the first text that has one."""
    value = dict(zip(words.words, words.scores, strict=True))
    for text in texts:
        best, best_value = "", 0.0
        for sentence in _SENTENCE.findall(text):
            found = _WORD.findall(sentence.lower())
            if 4 <= len(found) <= 20 and not brand.intersection(found):
                total = sum(value.get(word, 0.0) for word in dict.fromkeys(found)) / math.sqrt(len(found))
                if total > best_value:
                    best, best_value = sentence.strip(), total
        if best:
            return best
    return ""


def _queries(words: ItemWords, title: str, sentence: str, draws: np.ndarray) -> list[str]:
    """Return up to three queries, or the title of an item without words; `draws`: (2, TOP_WORDS + 1) in [0, 1)."""
    if not words.words:
        return [title]
    few, more = (_some(words, draw, number) for draw, number in zip(draws, (4, 3), strict=True))
    kind = words.kind
    rest = [word for word in more if word not in words_of(kind)] or more
    requests = _REQUESTS if kind else _REQUESTS_OF_NO_KIND
    request = requests[int(draws[1, -1] * len(requests))].format(kind=kind, words=", ".join(rest))
    keywords = " ".join([*few, *(word for word in words_of(kind) if word not in few)])
    return [keywords, request, sentence] if sentence else [keywords, request]


def _some(words: ItemWords, draw: np.ndarray, number: int) -> list[str]:
    """Draw a number of the words and return them in the order of the texts."""
    chosen = {words.words[place] for place in np.argsort(draw[: len(words.words)], kind="stable")[:number]}
    return [word for word in words.order if word in chosen]


def _preferences(
    data: RecommendationData,
    items: list[ItemWords],
    brands: list[set[str]],
    rarity: dict[str, float],
    seed: int,
    max_history: int,
) -> list[list[str]]:
    histories = training_histories(data)
    own = _own_reviews(data, brands)
    draws = np.random.default_rng((seed, 1)).random(data.num_users)
    wordings = (
        (_TASTES, _TASTES_OF_NO_KIND),
        (_LASTING_TASTES, _LASTING_TASTES_OF_NO_KIND),
        (_RECENT_TASTES, _RECENT_TASTES_OF_NO_KIND),
    )
    preferences = []
    for user, history in enumerate(histories):
        texts = []
        for read, tastes in zip(parts_of_history(history, max_history), wordings, strict=False):
            reviews = [own[user, item] for item in read if (user, item) in own]
            texts.append(_preference([items[item] for item in read], reviews, rarity, draws[user], *tastes))
        preferences.append([text for text in texts if text])
    return preferences


def parts_of_history(history: np.ndarray, max_history: int) -> list[list[int]]:
    """Return the items that a user's preferences are about: general, long-term and short-term; fewer of a short history.

    Example:
        >>> parts_of_history(np.array([4, 5, 6, 7, 8, 9]), max_history=4)
        [[5, 6, 7, 8], [5], [6, 7, 8]]
        >>> parts_of_history(np.array([4, 5]), max_history=4), parts_of_history(np.array([4]), max_history=4)
        ([[4]], [])
    """
    read = history[:-1][-max_history:].tolist()
    if len(read) <= RECENT_ITEMS:
        return [read] if read else []
    return [read, read[:-RECENT_ITEMS], read[-RECENT_ITEMS:]]


def _user_queries(
    data: RecommendationData, items: list[ItemWords], brands: list[set[str]], rarity: dict[str, float], seed: int
) -> list[list[str]]:
    """Return the intentions of each user behind the last training item."""
    draws = np.random.default_rng((seed, 2)).random((data.num_users, 2))
    queries: list[list[str]] = []
    for (item, review), draw in zip(reviews_of_last_items(data), draws, strict=True):
        scores = {word: rarity.get(word, 1.0) for word in words_of(review) if word not in brands[item]} if review else {}
        best = sorted(scores, key=lambda word: (-scores[word], word))[:TOP_WORDS]
        if not best:
            queries.append([])
            continue
        words, wanted = items[item], ItemWords(best, [scores[word] for word in best], best, "")
        sentences = [text for text in _SENTENCE.findall(review) if _ABOUT_ONESELF & set(_lower_words(text))]
        by_user = _best_sentence(["".join(sentences)], wanted, brands[item])
        by_user = by_user or _WISHES[int(draw[0] * len(_WISHES))].format(words=", ".join(best[:3]))
        shared = [word for word in words.order if word in scores][:3] or best[:3]
        rest = [word for word in shared if word not in words_of(words.kind)] or shared
        requests = _REQUESTS if words.kind else _REQUESTS_OF_NO_KIND
        by_item = requests[int(draw[1] * len(requests))].format(kind=words.kind, words=", ".join(rest))
        queries.append([by_user, by_item])
    return queries


def _lower_words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _own_reviews(data: RecommendationData, brands: list[set[str]]) -> dict[tuple[int, int], set[str]]:
    """Return (user, item) -> the words of that training pair's review, without the brand."""
    table = data.reviews()
    columns = (table[name].to_pylist() for name in ("user_index", "item_index", "review"))
    return {(user, item): set(words_of(clean_text(review))) - brands[item] for user, item, review in zip(*columns, strict=True)}


def _preference(
    items: list[ItemWords],
    reviews: list[set[str]],
    rarity: dict[str, float],
    draw: float,
    wordings: tuple[str, ...],
    wordings_of_no_kind: tuple[str, ...],
) -> str:
    """Return a sentence on the most frequent kinds and words of a history."""
    scores: defaultdict[str, float] = defaultdict(float)
    for item in items:
        for word, score in zip(item.words, item.scores, strict=True):
            scores[word] += score
    for words in reviews:
        for word in words:
            scores[word] += rarity.get(word, 0.0)
    sizes = Counter(item.kind for item in items if item.kind)
    kinds = sorted(sizes, key=lambda kind: (-sizes[kind], kind))[:2]
    known = {word for kind in kinds for word in words_of(kind)}
    best = [word for word in sorted(scores, key=lambda word: (-scores[word], word)) if word not in known][:4]
    if not best:
        return f"Likes {' and '.join(kinds)}." if kinds else ""
    tastes = wordings if kinds else wordings_of_no_kind
    return tastes[int(draw * len(tastes))].format(kind=" and ".join(kinds), words=", ".join(best))
