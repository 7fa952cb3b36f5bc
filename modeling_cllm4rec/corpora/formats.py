"""Forms of public data sets, as they are downloaded: one row a data set.

A row says which files are read, which columns have which role, and where the data comes from. Nothing is downloaded. The format
of a folder is recognized by the names of its files and by their columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.bad_rows import first_of
from modeling_cllm4rec.corpora.readers import open_source
from modeling_cllm4rec.corpora.sources import Expand
from modeling_cllm4rec.corpora.text_files import COMPRESSIONS, TextForm

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileForm:
    """Files of one table.

    Attributes:
        patterns: names of files, without the suffix of a compression; the first pattern with a file counts.
        text: delimiter, encoding and names of the columns.
        columns: role -> column; for items and users `id` -> column of ids.
        texts: role of a text -> columns.
        keep: columns that are kept in addition; the others are not read.
        separators: column -> separator of several texts in one.
        flags: columns of `1` and `0`; the names of those that are `1` become the categories.
        without: patterns of files that are not meant, though they fit.
    """

    patterns: tuple[str, ...]
    text: TextForm = field(default_factory=TextForm)
    columns: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    separators: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A public data set.

    Attributes:
        name: value of `format`.
        title: for the table of formats.
        interactions: its files of interactions; several, if versions differ; the first whose file is in the folder counts.
        items: its files of items, one for each of `interactions`.
        url: where it is downloaded.
        terms: its licence or terms of use, as its page gives them; read them there before you use the data.
        split: the split that is usual for it.
        time_format: form of its times, if it is not ISO-8601 and no number.
        expand: function from the rows of a file to interactions, if a row has several.
        on_missing_item: `keep` if the published texts lack some of the items, otherwise `error`.
    """

    name: str
    title: str
    interactions: tuple[FileForm, ...]
    items: tuple[FileForm, ...]
    url: str
    terms: str
    split: str = "random"
    time_format: str | None = None
    expand: Expand | None = None
    on_missing_item: str = "error"


@dataclass(frozen=True)
class FoundFiles:
    """Files of a preset in a folder.

    Attributes:
        interactions, items: the files; `items` is `None` if there is none.
        interaction_form, item_form: their forms.
    """

    interactions: Path
    interaction_form: FileForm
    items: Path | None
    item_form: FileForm


def clicks_of_mind(table: pa.Table) -> pa.Table:
    """Return the clicks of impressions of MIND, one a row; the label of a click is 1 (`N1-1 N2-0`).

    >>> log = pa.table({"user": ["U1"], "time": ["11/13/2019 8:36:57 AM"], "impressions": ["N1-1 N2-0"]})
    >>> clicks_of_mind(log).to_pylist()
    [{'user': 'U1', 'time': '11/13/2019 8:36:57 AM', 'impressions': 'N1'}]
    """
    frame = table.to_pandas()
    frame["impressions"] = frame["impressions"].fillna("").str.split()
    frame = frame.explode("impressions").dropna(subset="impressions")
    labels = frame["impressions"].str.rpartition("-")
    odd = ~labels[2].isin(["0", "1"])
    if odd.any():
        values = first_of(frame["impressions"][odd].tolist())
        raise InputError(
            f"impressions must be ITEM-1 or ITEM-0, got {values}; the test set of MIND has no labels, so leave it out"
        )
    frame["impressions"] = labels[0]
    kept: pd.DataFrame = frame[labels[2] == "1"]
    return pa.Table.from_pandas(
        kept, schema=pa.schema([pa.field(name, pa.large_string()) for name in table.column_names]), preserve_index=False
    )


_TABS = TextForm(delimiter="\t", quoted=False)
_AMAZON_TERMS = "research use; cite the paper that the page names; no redistribution"
_AMAZON_REVIEWS = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "rating": "overall",
    "timestamp": "unixReviewTime",
    "review": "reviewText",
}
_WORDS = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
_GENRES = tuple(_WORDS)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "movielens",
            "MovieLens latest, 25M, 32M (CSV), 1M, 10M (`::`), 100K (`u.data`)",
            (
                FileForm(
                    ("ratings.csv",),
                    columns={"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"},
                ),
                FileForm(
                    ("ratings.dat",),
                    TextForm("::", "latin-1", ("userId", "movieId", "rating", "timestamp"), quoted=False),
                    {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"},
                ),
                FileForm(
                    ("u.data",),
                    TextForm("\t", "latin-1", ("userId", "movieId", "rating", "timestamp"), quoted=False),
                    {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"},
                ),
            ),
            (
                FileForm(
                    ("movies.csv",),
                    columns={"id": "movieId"},
                    texts={"title": ("title",), "categories": ("genres",)},
                    separators={"genres": "|"},
                ),
                FileForm(
                    ("movies.dat",),
                    TextForm("::", "latin-1", ("movieId", "title", "genres"), quoted=False),
                    {"id": "movieId"},
                    {"title": ("title",), "categories": ("genres",)},
                    separators={"genres": "|"},
                ),
                FileForm(
                    ("u.item",),
                    TextForm("|", "latin-1", ("movieId", "title", "released", "video", "url", *_GENRES), quoted=False),
                    {"id": "movieId"},
                    {"title": ("title",)},
                    flags=_GENRES[1:],  # The first one says that the genre is unknown.
                ),
            ),
            "https://grouplens.org/datasets/movielens/",
            "research use; commercial use needs permission, and so does redistribution of 100K; cite Harper and Konstan 2015",
        ),
        Preset(
            "amazon2014",
            "Amazon reviews 2014: `reviews_X.json.gz` or `reviews_X_5.json.gz`, and `meta_X.json.gz` (Python literals)",
            (FileForm(("reviews_*.json",), columns=_AMAZON_REVIEWS),),
            (
                FileForm(
                    ("meta_*.json",),
                    columns={"id": "asin"},
                    texts={
                        "title": ("title",),
                        "brand": ("brand",),
                        "categories": ("categories",),
                        "description": ("description",),
                    },
                    keep=("price",),
                ),
            ),
            "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
            _AMAZON_TERMS,
            on_missing_item="keep",
        ),
        Preset(
            "amazon2018",
            "Amazon reviews 2018: `X.json.gz` or `X_5.json.gz`, and `meta_X.json.gz`",
            (FileForm(("*.json",), columns=_AMAZON_REVIEWS, without=("meta_*", "reviews_*")),),
            (
                FileForm(
                    ("meta_*.json",),
                    columns={"id": "asin"},
                    texts={
                        "title": ("title",),
                        "brand": ("brand",),
                        "categories": ("category",),
                        "description": ("description", "feature"),
                    },
                    keep=("price",),
                ),
            ),
            "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
            _AMAZON_TERMS,
            on_missing_item="keep",
        ),
        Preset(
            "amazon2023",
            "Amazon reviews 2023: `X.jsonl.gz` and `meta_X.jsonl.gz`; items are parents (`parent_asin`)",
            (
                FileForm(
                    ("*.jsonl",),
                    columns={
                        "user_id": "user_id",
                        "item_id": "parent_asin",
                        "rating": "rating",
                        "timestamp": "timestamp",
                        "review": "text",
                    },
                    without=("meta_*",),
                ),
            ),
            (
                FileForm(
                    ("meta_*.jsonl",),
                    columns={"id": "parent_asin"},
                    texts={
                        "title": ("title",),
                        "brand": ("store",),
                        "categories": ("categories",),
                        "description": ("description", "features"),
                    },
                    keep=("price",),
                ),
            ),
            "https://amazon-reviews-2023.github.io/",
            "no licence is given; cite Hou et al. 2024",
            on_missing_item="keep",
        ),
        Preset(
            "yelp",
            "Yelp Open Dataset: `yelp_academic_dataset_review.json` and `..._business.json`",
            (
                FileForm(
                    ("yelp_academic_dataset_review.json", "review.json"),
                    columns={
                        "user_id": "user_id",
                        "item_id": "business_id",
                        "rating": "stars",
                        "timestamp": "date",
                        "review": "text",
                    },
                ),
            ),
            (
                FileForm(
                    ("yelp_academic_dataset_business.json", "business.json"),
                    columns={"id": "business_id"},
                    texts={"title": ("name",), "categories": ("categories",)},
                    keep=("city",),
                    separators={"categories": ", "},
                ),
            ),
            "https://business.yelp.com/data/resources/open-dataset/",
            "Yelp Dataset License: personal, educational and academic use; no redistribution",
        ),
        Preset(
            "steam",
            "Steam reviews: `steam_reviews.json.gz` and `steam_games.json.gz` (Python literals)",
            (
                FileForm(
                    ("steam_reviews.json", "steam_new.json"),
                    columns={"user_id": "username", "item_id": "product_id", "timestamp": "date", "review": "text"},
                ),
            ),
            (
                FileForm(
                    ("steam_games.json",),
                    columns={"id": "id"},
                    texts={"title": ("app_name",), "brand": ("developer",), "categories": ("genres", "tags")},
                    keep=("price",),
                ),
            ),
            "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
            "research use; cite Kang and McAuley 2018",
            on_missing_item="keep",
        ),
        Preset(
            "goodreads",
            "Goodreads: `goodreads_interactions_X.json.gz` or `goodreads_reviews_X.json.gz`, and `goodreads_books_X.json.gz`",
            (
                FileForm(
                    ("goodreads_interactions*.json", "goodreads_reviews*.json"),
                    columns={
                        "user_id": "user_id",
                        "item_id": "book_id",
                        "rating": "rating",
                        "timestamp": "date_added",
                        "review": "review_text",
                    },
                ),
            ),
            (
                FileForm(
                    ("goodreads_books*.json",),
                    columns={"id": "book_id"},
                    texts={"title": ("title",), "brand": ("publisher",), "description": ("description",)},
                ),
            ),
            "https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html",
            "academic use only; no redistribution, no commercial use; cite Wan and McAuley 2018",
            time_format="%a %b %d %H:%M:%S %z %Y",
        ),
        Preset(
            "mind",
            "MIND: `behaviors.tsv` (the clicks) and `news.tsv`",
            (
                FileForm(
                    ("behaviors.tsv",),
                    TextForm("\t", "utf-8", ("impression", "user", "time", "history", "impressions"), quoted=False),
                    {"user_id": "user", "item_id": "impressions", "timestamp": "time"},
                ),
            ),
            (
                FileForm(
                    ("news.tsv",),
                    TextForm(
                        "\t",
                        "utf-8",
                        ("news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
                        quoted=False,
                    ),
                    {"id": "news"},
                    {"title": ("title",), "categories": ("category", "subcategory"), "description": ("abstract",)},
                ),
            ),
            "https://msnews.github.io/",
            "Microsoft Research License Terms: research use",
            time_format="%m/%d/%Y %I:%M:%S %p",
            expand=clicks_of_mind,
        ),
        Preset(
            "hm",
            "H&M Personalized Fashion Recommendations: `transactions_train.csv` and `articles.csv`",
            (
                FileForm(
                    ("transactions_train.csv",),
                    columns={"user_id": "customer_id", "item_id": "article_id", "timestamp": "t_dat"},
                ),
            ),
            (
                FileForm(
                    ("articles.csv",),
                    columns={"id": "article_id"},
                    texts={
                        "title": ("prod_name",),
                        "categories": ("product_group_name", "product_type_name", "section_name"),
                        "description": ("detail_desc",),
                    },
                    keep=("colour_group_name",),
                ),
            ),
            "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data",
            "rules of the Kaggle competition: non-commercial use and academic research",
            split="temporal",
        ),
    )
}
"""Name -> preset."""
RELEASED = {
    "recbole": (
        "RecBole: `NAME.inter` (or `NAME.train.inter`, ...), `NAME.item`, `NAME.user`",
        "https://recbole.io/dataset_list.html",
    ),
    "cllm4rec": (
        "CLLM4Rec: `train_matrix.npz`, `val_matrix.npz`, `test_matrix.npz`, `user_item_texts/review.jsonl`",
        "https://github.com/yaochenzhu/LLM4Rec",
    ),
    "lcrec": ("LC-Rec: `NAME.inter.json`, `NAME.item.json`", "https://github.com/RUCAIBox/LC-Rec"),
}
"""Formats of the released files of other projects: title and address; `released_files` reads them."""
FORMATS = (*PRESETS, *RELEASED)


def find_preset_files(name: str, folder: str | Path) -> FoundFiles:
    """Find the files of a preset in a folder.

    Raises:
        MissingFileError: the folder, or its file of interactions, is missing.
        InputError: several files fit.
    """
    preset, folder = PRESETS[name], Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder")
    for interactions, items in zip(preset.interactions, preset.items, strict=True):
        path = _find(folder, interactions, name)
        if path is not None:
            return FoundFiles(path, interactions, _find(folder, items, name), items)
    wanted = ", ".join(pattern for form in preset.interactions for pattern in form.patterns)
    raise MissingFileError(f"{folder}: there is no file of interactions of {name} ({wanted}); download it from {preset.url}")


def recognize_format(folder: str | Path) -> str:
    """Find the format of a folder by the names of its files, and by their columns where they have a header.

    Raises:
        MissingFileError: there is no such folder, or its files are of no format.
        InputError: the files fit several formats.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder")
    found = {
        name: next(iter(sorted(folder.glob(pattern))))
        for name, pattern in (("recbole", "*.inter"), ("cllm4rec", "train_matrix.npz"), ("lcrec", "*.inter.json*"))
        if any(folder.glob(pattern))
    }
    for name, preset in () if found else PRESETS.items():
        for form in preset.interactions:
            fitting = [path for path in _candidates(folder, form) if _has_columns(path, form)]
            if fitting:
                found.setdefault(name, fitting[0])
    if not found:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "empty"
        raise MissingFileError(
            f"{folder}: the format of the folder ({names}) cannot be recognized; name it with format=... ({', '.join(FORMATS)}), "
            "or name the file of the interactions in place of the folder"
        )
    if len(found) > 1:
        listed = ", ".join(f"{name} ({path.name})" for name, path in found.items())
        raise InputError(f"{folder}: the files fit several formats: {listed}; name one of them with format=...")
    ((name, path),) = found.items()
    logger.info("%s: format %s (recognized by %s)", folder, name, path.name)
    return name


def _has_columns(path: Path, form: FileForm) -> bool:
    """Check whether a file has the columns of ids; a file without a header is known by its name alone."""
    if form.text.names:
        return True
    try:
        columns = open_source(path, form.text, everything=False).columns
    except InputError:  # It is of no table, as many other JSON files.
        return False
    return all(form.columns[role] in columns for role in ("user_id", "item_id"))


def _find(folder: Path, form: FileForm, name: str) -> Path | None:
    """Find the one file of a form in a folder, plain or compressed."""
    found = _candidates(folder, form)
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: several files fit format {name}: {listed}; keep one of them in the folder")
    return found[0] if found else None


def _candidates(folder: Path, form: FileForm) -> list[Path]:
    """Return the files that fit the first pattern of a form that any file fits."""
    endings = ("", *COMPRESSIONS)
    for pattern in form.patterns:
        found = [
            path
            for path in sorted(folder.iterdir())
            if any(fnmatch(path.name, pattern + ending) for ending in endings)
            and not any(fnmatch(path.name, other) for other in form.without)
        ]
        if found:
            return found
    return []


def format_table() -> str:
    """Return the table of formats in Markdown, as it is in the documentation."""
    lines = ["| `--format` | files | split | from | terms |", "|---|---|---|---|---|"]
    for preset in PRESETS.values():
        lines.append(f"| `{preset.name}` | {preset.title} | {preset.split} | <{preset.url}> | {preset.terms} |")
    splits = {"recbole": "random, or that of the files", "cllm4rec": "that of the files", "lcrec": "leave-one-out"}
    for name, (title, url) in RELEASED.items():
        lines.append(f"| `{name}` | {title} | {splits[name]} | <{url}> | those of the data set |")
    return "\n".join(lines)
