"""A small synthetic data set of users, items and reviews, for the demo and the tests.

Latent traits generate everything. Each item has one category, one style and two qualities. Each user has favourite categories
and styles, and likes some qualities and dislikes others. Users choose items from softmax(taste . traits + popularity), so
their histories predict their next items. A small grammar composes titles, descriptions, biographies and reviews from the same
traits, so the words also predict the next items. The data set contains no real data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError

CATEGORIES = {  # category: department, nouns
    "Tea": ("Pantry", ("black tea", "herbal tea", "green tea")),
    "Coffee": ("Pantry", ("ground coffee", "espresso blend", "filter coffee")),
    "Chocolate": ("Pantry", ("chocolate bar", "box of truffles", "drinking chocolate")),
    "Candles": ("Home", ("candle", "pillar candle", "wax melt")),
    "Lamps": ("Home", ("desk lamp", "lantern", "night light")),
    "Soap": ("Bath", ("soap bar", "bath salt", "hand wash")),
    "Notebooks": ("Desk", ("notebook", "sketchbook", "journal")),
    "Pens": ("Desk", ("fountain pen", "brush pen", "ink set")),
    "Puzzles": ("Games", ("jigsaw puzzle", "wooden puzzle", "riddle box")),
    "Plants": ("Garden", ("seed kit", "herb pot", "moss garden")),
}
STYLES = {  # style: words for its look, brands
    "rustic": (("farmhouse", "weathered", "country"), ("Oak & Ember", "Hay Barn", "Old Mill")),
    "modern": (("sleek", "minimal", "geometric"), ("Unit Nine", "Plainform", "Kubik")),
    "vintage": (("antique", "nostalgic", "old-time"), ("Grandmother's Attic", "1920 & Sons", "Sepia")),
    "nordic": (("pale", "airy", "northern"), ("Fjordlys", "Snø", "Birk og Blå")),
    "coastal": (("sea-blue", "sandy", "breezy"), ("Low Tide", "Harbour Lane", "Gull & Rope")),
    "botanical": (("leafy", "green", "flowering"), ("Fern House", "Wild Meadow", "Root & Petal")),
}
QUALITIES = {  # quality: what is praised, what is disliked
    "sturdy": ("it feels solid and will last for years", "it is heavier and stiffer than I wanted"),
    "delicate": ("every detail is fine and light", "it looks too fragile to use every day"),
    "colourful": ("the colours lift the whole room", "the colours are far too loud for me"),
    "calming": ("it slows the evening down in the best way", "it is so mild that I nearly fell asleep"),
    "playful": ("it makes me smile each time", "it is rather childish for my taste"),
    "elegant": ("it looks like something from a good hotel", "it is too formal for my kitchen table"),
    "compact": ("it fits into any drawer or bag", "it is much smaller than I had imagined"),
    "fragrant": ("the scent fills the house without shouting", "the scent gave me a headache within minutes"),
    "handmade": ("you can see the hand that made it", "it came a little uneven and crooked"),
    "bold": ("it has character from the first moment", "it is simply too strong for me"),
}
OPENINGS = {
    "happy": (
        "This {noun} is a delight.",
        "I love this {noun} from {brand}.",
        "Exactly what I was looking for.",
        "My second {noun} by {brand}, and not the last.",
        "A wonderful {look} {noun}.",
        "What a find!",
    ),
    "mixed": (
        "A decent {noun}, no more and no less.",
        "I am of two minds about this {noun}.",
        "Not bad for a {look} {noun}.",
        "It does what it should.",
    ),
    "unhappy": (
        "I wanted to like this {noun}.",
        "Sadly this {noun} is not for me.",
        "{brand} has done better than this.",
        "I sent it back after a week.",
    ),
}
CLOSINGS = {
    "happy": ("Five stars from me.", "I will buy it again.", "My friends ask for it.", "Warmly recommended.", ""),
    "mixed": (
        "It may suit somebody else better.",  # codespell:ignore somebody
        "Fair for the price.",
        "I might try another one.",
        "",
    ),
    "unhappy": ("I would not buy it again.", "Look elsewhere.", "It now sits in a cupboard.", ""),
}
SYLLABLES = ("ba", "cor", "del", "fi", "gra", "ho", "kel", "lu", "mar", "ni", "or", "pe", "ri", "sol", "tam", "ve")
ID_SHAPES = (
    "{kind}_{n}",
    "<{kind}_{n}>",
    "{n:06d}",
    '{kind} no. {n}, the "odd" one',
    "🦊{n}",
    "Zoë/Łukasz-{n}",
    "商品 {n}",
    "B00{n:05d}X",
)

_TRAITS = [*CATEGORIES, *STYLES, *QUALITIES]
_FIRST_DAY = 1_577_836_800  # 2020-01-01 in seconds
_TWO_YEARS = 2 * 365 * 24 * 3600


class SyntheticDataset(NamedTuple):
    """Three tables in external ids.

    Attributes:
        interactions: `user_id`, `item_id`, `rating` (1 to 5), `timestamp` (seconds), `review` (null for some), by time.
        items: `item_id`, `title`, `brand`, `categories` (list of strings), `description`.
        users: `user_id`, `biography` (null for some).
    """

    interactions: pa.Table
    items: pa.Table
    users: pa.Table


class _Items(NamedTuple):
    ids: list[str]
    traits: npt.NDArray[np.float64]  # (J, traits) 1 where the item has the trait
    category: list[str]
    style: list[str]
    qualities: list[tuple[str, str]]
    noun: list[str]
    brand: list[str]
    look: list[str]


class _Users(NamedTuple):
    ids: list[str]
    tastes: npt.NDArray[np.float64]  # (I, traits) positive where liked, negative where disliked


def make_synthetic_dataset(
    num_users: int = 600,
    num_items: int = 240,
    seed: int = 0,
    interactions_per_user: int = 13,
    taste_strength: float = 2.5,
    popularity_spread: float = 0.5,
) -> SyntheticDataset:
    """Generate users, items, and interactions with ratings and reviews.

    Args:
        num_users: number of users, at least 1.
        num_items: number of items, at least twice `interactions_per_user`, so that users have a choice.
        seed: the same arguments give the same data set on every machine with the same numpy.
        interactions_per_user: mean of a uniform distribution from 4 below to 4 above it; at least 5.
        taste_strength: inverse temperature of the choices by taste; at 0 users choose by popularity alone.
        popularity_spread: standard deviation of the log popularity of items; at 0 all items are equally popular.

    Raises:
        InputError: a size is too small or a factor is negative.

    Example:
        >>> world = make_synthetic_dataset(num_users=20, num_items=30, seed=1)
        >>> world.interactions.column_names
        ['user_id', 'item_id', 'rating', 'timestamp', 'review']
        >>> world.items.num_rows, world.users.num_rows
        (30, 20)
    """
    _check_sizes(num_users, num_items, seed, interactions_per_user)
    _check_factor("taste_strength", taste_strength)
    _check_factor("popularity_spread", popularity_spread)
    items = _make_items(num_items, np.random.default_rng([seed, 0]))
    users = _make_users(num_users, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    fit = users.tastes @ items.traits.T  # (I, J)
    log_popularity = popularity_spread * rng.standard_normal(num_items)
    user_index, item_index = _choose(taste_strength * fit + log_popularity, interactions_per_user, rng)
    ratings = _rate(fit[user_index, item_index], rng)
    timestamps = _FIRST_DAY + rng.integers(_TWO_YEARS, size=len(user_index))
    by_time = np.argsort(timestamps, kind="stable")
    interactions = _interactions_table(
        users, items, user_index[by_time], item_index[by_time], ratings[by_time], timestamps[by_time], rng
    )
    return SyntheticDataset(interactions, _items_table(items, rng), _users_table(users, rng))


def _check_sizes(num_users: int, num_items: int, seed: int, interactions_per_user: int) -> None:
    """Check the sizes and the seed."""
    if num_users < 1:
        raise InputError(f"num_users is {num_users}; it must be at least 1")
    if interactions_per_user < 5:
        raise InputError(
            f"interactions_per_user is {interactions_per_user}; it must be at least 5, because the least number is 4 below it"
        )
    if num_items < 2 * interactions_per_user:
        raise InputError(
            f"num_items is {num_items}; with interactions_per_user={interactions_per_user} "
            f"at least {2 * interactions_per_user} are needed: raise num_items or lower interactions_per_user"
        )
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or greater")


def _check_factor(name: str, value: float) -> None:
    """Check that a factor is finite and not negative."""
    if not (0 <= value < float("inf")):
        raise InputError(f"{name} is {value}; it must be 0 or greater, and finite")


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """Draw one of some texts."""
    return options[int(rng.integers(len(options)))]


def _ids(kind: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return ids with unusual characters, whose numbers differ from their positions in the table."""
    numbers = rng.permutation(count)
    return [ID_SHAPES[n % len(ID_SHAPES)].format(kind=kind, n=n) for n in numbers.tolist()]


def _make_items(count: int, rng: np.random.Generator) -> _Items:
    """Draw the traits of all items."""
    items = _Items(_ids("item", count, rng), np.zeros((count, len(_TRAITS))), [], [], [], [], [], [])
    categories, styles, qualities = tuple(CATEGORIES), tuple(STYLES), tuple(QUALITIES)
    for j in range(count):
        category, style = categories[j % len(categories)], _pick(styles, rng)
        first, second = (qualities[int(q)] for q in rng.permutation(len(qualities))[:2])
        items.category.append(category)
        items.style.append(style)
        items.qualities.append((first, second))
        items.noun.append(_pick(CATEGORIES[category][1], rng))
        items.look.append(_pick(STYLES[style][0], rng))
        items.brand.append(_pick(STYLES[style][1], rng))
        for trait in (category, style, first, second):
            items.traits[j, _TRAITS.index(trait)] = 1.0
    return items


def _make_users(count: int, rng: np.random.Generator) -> _Users:
    """Draw the tastes of all users."""
    tastes = np.zeros((count, len(_TRAITS)))
    for taste in tastes:
        categories = rng.permutation(len(CATEGORIES))
        styles = len(CATEGORIES) + rng.permutation(len(STYLES))
        qualities = len(CATEGORIES) + len(STYLES) + rng.permutation(len(QUALITIES))
        taste[categories[:2]] = 2.0, 1.7
        taste[styles[:2]] = 1.4, 1.1
        taste[qualities[:3]] = 0.5
        taste[qualities[-2:]] = -0.7
    return _Users(_ids("user", count, rng), tastes)


def _choose(
    log_weights: npt.NDArray[np.float64], mean: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw distinct items from softmax(log_weights) for each user: the largest after Gumbel noise."""
    num_users, num_items = log_weights.shape
    noisy = log_weights + rng.gumbel(size=(num_users, num_items))
    counts: npt.NDArray[np.int64] = np.asarray(rng.integers(mean - 4, mean + 5, size=num_users))
    order = np.argsort(-noisy, axis=1, kind="stable")
    chosen = [ranked[:count] for ranked, count in zip(order, counts, strict=True)]
    return np.repeat(np.arange(num_users), counts), np.concatenate(chosen)


def _rate(fit: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw ratings 1 to 5 that rise with the match of item and taste; about four in five are 4 or 5."""
    spread = float(fit.std()) or 1.0
    raw = 4.4 + 0.8 * (fit - fit.mean()) / spread + 0.6 * rng.standard_normal(len(fit))
    return np.clip(np.rint(raw), 1, 5).astype(np.int64)


def _items_table(items: _Items, rng: np.random.Generator) -> pa.Table:
    """Return the table of items with their texts."""
    rows = range(len(items.ids))
    return pa.table(
        {
            "item_id": pa.array(items.ids, pa.string()),
            "title": pa.array([_title(items, j) for j in rows], pa.string()),
            "brand": pa.array(items.brand, pa.string()),
            "categories": pa.array(
                [[CATEGORIES[items.category[j]][0], items.category[j], items.style[j].capitalize()] for j in rows],
                pa.list_(pa.string()),
            ),
            "description": pa.array([_description(items, j, rng) for j in rows], pa.string()),
        }
    )


def _title(items: _Items, j: int) -> str:
    """Compose the title of an item, with a name that no other item has."""
    base = len(SYLLABLES)
    name = SYLLABLES[j % base] + SYLLABLES[j // base % base] + (SYLLABLES[j // base**2 % base] if j >= base**2 else "")
    return f"{name.capitalize()} {items.qualities[j][0]} {items.look[j]} {items.noun[j]}"


def _description(items: _Items, j: int, rng: np.random.Generator) -> str:
    """Compose the description of an item."""
    first, second = items.qualities[j]
    opening = _pick(
        (
            "{article} {first} {noun} in {style} style, made by {brand}.",
            "{brand} presents a {style} {noun}, {first} and {second}.",
            "The {style} {noun} for people who like things {first}.",  # codespell:ignore people
        ),
        rng,
    )
    middle = _pick(
        (
            "Customers say that {praise}.",
            "Being {second}, it earns its place: {praise}.",
            "Its look is {look}, and {praise}.",
        ),
        rng,
    )
    closing = _pick(("A fine gift.", "Comes in a plain box.", "Made in small numbers.", "One size.", ""), rng)
    return " ".join(
        f"{opening} {middle} {closing}".format(
            article="An" if first[0] in "aeiou" else "A",
            first=first,
            second=second,
            noun=items.noun[j],
            style=items.style[j],
            brand=items.brand[j],
            look=items.look[j],
            praise=QUALITIES[second][0],
        ).split()
    )


def _users_table(users: _Users, rng: np.random.Generator) -> pa.Table:
    """Return the table of users with their biographies."""
    biographies = [_biography(taste, rng) if rng.random() < 0.8 else None for taste in users.tastes]
    return pa.table({"user_id": pa.array(users.ids, pa.string()), "biography": pa.array(biographies, pa.string())})


def _liked(taste: npt.NDArray[np.float64], among: Iterable[str]) -> list[str]:
    """Return the traits of one kind that a user likes, the favourite first."""
    weights = [(-taste[_TRAITS.index(trait)], trait) for trait in among]
    return [trait for weight, trait in sorted(weights) if weight < 0]


def _biography(taste: npt.NDArray[np.float64], rng: np.random.Generator) -> str:
    """Compose the biography of a user."""
    category, second_category = (name.lower() for name in _liked(taste, CATEGORIES))
    style, second_style = _liked(taste, STYLES)
    quality = _liked(taste, QUALITIES)[0]
    template = _pick(
        (
            "I collect {category} and, on rainy days, {second_category}. My flat is {style}, a little {second_style}.",
            "Give me {category} or {second_category} and I am happy. I like things {style} and {quality}.",
            "{style} and {second_style} things are my weakness, above all {category}. Also {second_category}.",
            "By day I count numbers, by night I look for {quality} {category} and {style} {second_category}.",
        ),
        rng,
    )
    text = template.format(
        category=category, second_category=second_category, style=style, second_style=second_style, quality=quality
    )
    return text[0].upper() + text[1:]


def _interactions_table(
    users: _Users,
    items: _Items,
    user_index: npt.NDArray[np.int64],
    item_index: npt.NDArray[np.int64],
    ratings: npt.NDArray[np.int64],
    timestamps: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> pa.Table:
    """Return the table of interactions with their reviews."""
    triples = list(zip(user_index.tolist(), item_index.tolist(), ratings.tolist(), strict=True))
    reviews = [_review(users.tastes[i], items, j, rating, rng) if rng.random() < 0.9 else None for i, j, rating in triples]
    return pa.table(
        {
            "user_id": pa.array([users.ids[i] for i, _, _ in triples], pa.string()),
            "item_id": pa.array([items.ids[j] for _, j, _ in triples], pa.string()),
            "rating": pa.array(ratings, pa.int64()),
            "timestamp": pa.array(timestamps, pa.int64()),
            "review": pa.array(reviews, pa.string()),
        }
    )


def _review(taste: npt.NDArray[np.float64], items: _Items, j: int, rating: int, rng: np.random.Generator) -> str:
    """Compose a review in a tone that matches its rating."""
    tone = "happy" if rating >= 4 else "mixed" if rating == 3 else "unhappy"
    sentences = [_pick(OPENINGS[tone], rng), _opinion(taste, items.qualities[j], tone, rng)]
    if taste[_TRAITS.index(items.category[j])] > 0 and rng.random() < 0.5:
        expert = ("I never have enough {category}.", "I know my {category}.", "One more for my shelf of {category}.")
        sentences.append(_pick(expert, rng))
    if rng.random() < 0.5:
        liked = taste[_TRAITS.index(items.style[j])] > 0
        fitting = ("The {style} look suits my home.", "I adore the {style} style.")
        strange = ("The {style} look is not quite mine.", "I do not care for {style} things, but well.")
        sentences.append(_pick(fitting if liked else strange, rng))
    sentences.append(_pick(CLOSINGS[tone], rng))
    text = " ".join(sentences).format(
        noun=items.noun[j],
        brand=items.brand[j],
        look=items.look[j],
        style=items.style[j],
        category=items.category[j].lower(),
    )
    return text.strip()


def _opinion(taste: npt.NDArray[np.float64], qualities: tuple[str, str], tone: str, rng: np.random.Generator) -> str:
    """Compose a sentence about both qualities of an item: praise for those that the user likes, criticism for others."""
    words = []
    for quality in qualities:
        weight = taste[_TRAITS.index(quality)]
        praised = weight > 0 or (weight == 0 and tone == "happy")
        words.append((praised, QUALITIES[quality][0 if praised else 1]))
    (first_praised, first), (second_praised, second) = words
    if first_praised == second_praised:
        return _pick((f"Clearly {qualities[0]}: {first}, and {second}.", f"I find that {first}; {second}."), rng)
    return _pick((f"For one thing {first}, but {second}.", f"On one side {first}; on the other {second}."), rng)
