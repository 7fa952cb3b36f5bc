"""Roles of columns: ids, rating, time and review of an interaction, and the texts that the models read.

A column with the name of its role has that role. Where there is none, a column with a name that is known from public data
sets has it, and a line of the log says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.item_texts import BIOGRAPHY, DESCRIPTION, ITEM_TEXTS, TITLE

KNOWN_COLUMNS = {
    "user_id": ("userId", "user", "uid", "reviewerID", "reviewer_id", "customer_id", "visitorid", "username", "account_id"),
    "item_id": (
        *("itemId", "item", "iid", "movieId", "movie_id", "asin", "parent_asin", "product_id", "article_id", "business_id"),
        *("book_id", "news_id", "game_id", "track_id", "sku"),
    ),
    "rating": ("ratings", "overall", "stars", "score"),
    "timestamp": ("time", "date", "datetime", "ts", "unixReviewTime", "t_dat", "created_at"),
    "review": ("reviewText", "review_text", "text"),
}
"""Role -> names of columns that have it in public data sets; upper and lower case do not matter."""
KNOWN_TEXTS = {
    TITLE: ("movie_title", "name", "prod_name", "product_name", "app_name", "book_title", "item_name"),
    "brand": ("store", "manufacturer", "publisher", "author"),
    "categories": ("category", "genres", "genre", "product_type_name", "class"),
    DESCRIPTION: ("descriptions", "detail_desc", "features", "feature", "abstract", "overview", "about"),
    BIOGRAPHY: ("bio", "about", "about_me"),
}
"""The same for the texts of items and users; the first name that is there counts."""
SEPARATED = "|"
"""Separator of several categories in one text, as in the genres of MovieLens."""
TextColumns = Mapping[str, str | Sequence[str]]
"""Role of a text -> its column, or several that are joined."""


def find_column(role: str, columns: Sequence[str], source: str, argument: str, taken: Sequence[str] = ()) -> str | None:
    """Find the column of a role by the known names.

    Args:
        role: a key of `KNOWN_COLUMNS`.
        columns: all columns of the source.
        source: name of the source in messages.
        argument: the argument that names the column, in messages.
        taken: columns that have a role already.

    Returns:
        The column, or `None` if there is none.

    Raises:
        InputError: several columns have known names.

    Example:
        >>> find_column("item_id", ["userId", "movieId", "rating"], "ratings.csv", "item_column")
        'movieId'
    """
    if role in columns:
        return role
    known = {name.lower() for name in (role, *KNOWN_COLUMNS[role])}
    found = [name for name in columns if name.lower() in known and name not in taken]
    if len(found) > 1:
        raise InputError(
            f"{source}: {', '.join(map(repr, found))} may each be the {role}; name one of them with {argument}={found[0]!r}"
        )
    return found[0] if found else None


def check_text_columns(text: TextColumns | None) -> dict[str, tuple[str, ...]]:
    """Check the roles of text columns, and return role -> columns.

    Raises:
        InputError: a role is unknown, or has no column.

    Example:
        >>> check_text_columns({"title": "name", "description": ["detail_desc", "section"]})
        {'title': ('name',), 'description': ('detail_desc', 'section')}
    """
    checked = {}
    for role, columns in (text or {}).items():
        if role not in KNOWN_TEXTS:
            raise InputError(f"text has the role {role!r}; the roles are {', '.join(KNOWN_TEXTS)}")
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if not names or not all(names):
            raise InputError(f"text has no column for {role!r}; write text={{{role!r}: 'COLUMN'}}")
        checked[role] = names
    return checked


def roles_of(name: str) -> tuple[str, ...]:
    """Return the roles of the texts of items (`item_id`) or users (`user_id`)."""
    return ITEM_TEXTS if name == "item_id" else (BIOGRAPHY,)


def guess_texts(columns: Sequence[str], given: Mapping[str, Sequence[str]], name: str) -> dict[str, tuple[str, ...]]:
    """Find the text columns of the roles that are neither given nor have a column of their own name.

    Args:
        columns: all columns of the source but the ids.
        given: role -> columns, as the caller says.
        name: `item_id` or `user_id`.

    Returns:
        Role -> column, for those with a known name.

    Example:
        >>> guess_texts(["movie_title", "genres", "year"], {}, "item_id")
        {'title': ('movie_title',), 'categories': ('genres',)}
    """
    used = {column for names in given.values() for column in names}
    found: dict[str, tuple[str, ...]] = {}
    for role in roles_of(name):
        if role in given or role in columns:
            continue
        lower = {column.lower(): column for column in reversed(columns) if column not in used}
        known = next((lower[word] for word in (role, *map(str.lower, KNOWN_TEXTS[role])) if word in lower), None)
        if known is not None:
            found[role] = (known,)
            used.add(known)
    return found
