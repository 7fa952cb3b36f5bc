"""A data folder from raw data: files, data sets, tables in memory, or a public data set as it is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pyarrow as pa

from modeling_cllm4rec.core.errors import InputError, MissingFileError
from modeling_cllm4rec.corpora.column_roles import TextColumns, check_text_columns, roles_of
from modeling_cllm4rec.corpora.data_folder import RecommendationData, check_output
from modeling_cllm4rec.corpora.formats import FORMATS, PRESETS, find_preset_files, recognize_format
from modeling_cllm4rec.corpora.memory_tables import TableLike, is_in_memory
from modeling_cllm4rec.corpora.preparation import prepare_folder
from modeling_cllm4rec.corpora.readers import checksum, open_source
from modeling_cllm4rec.corpora.released_files import find_recbole_files, read_cllm4rec_files, read_lcrec_files
from modeling_cllm4rec.corpora.sources import OpenInteractions, open_interactions, read_texts
from modeling_cllm4rec.corpora.text_files import TextForm

_COLUMNS = ("rating_column", "timestamp_column", "review_column", "split_column")
_ITEM_TEXTS = ("item_columns", "exclude_item_columns")
MEANINGLESS: dict[str | None, tuple[str, ...]] = {
    None: ("reviews",),
    "recbole": ("reviews", "delimiter"),
    "cllm4rec": (*_COLUMNS, "id_type", "delimiter", "encoding"),
    "lcrec": (*_COLUMNS, "reviews", *_ITEM_TEXTS, "delimiter", "encoding", "text"),
    **dict.fromkeys(PRESETS, ("reviews", "delimiter", "encoding", "user_column", "item_column", *_COLUMNS)),
}
"""Format -> arguments that say nothing about it."""


class RawTables(NamedTuple):
    """Tables under the names of this package, not yet prepared.

    Attributes:
        interactions: the rows, read as they are needed.
        items, users: their texts, or `None`.
        files: table -> what it is read from; tables in memory are not in it.
        split: the split of the format, or the one that was asked for.
        order: the order of the interactions of a user.
        columns: all columns of the source of the interactions.
        on_missing_item: treatment of items without texts that is usual for the format.
    """

    interactions: pa.Table | pa.RecordBatchReader
    items: pa.Table | None
    users: pa.Table | None
    files: dict[str, list[str | Path]]
    split: str
    order: str
    columns: tuple[str, ...]
    on_missing_item: str = "error"


def open_raw_data(
    interactions: TableLike | None = None,
    items: TableLike | None = None,
    users: TableLike | None = None,
    *,
    folder: str | Path | None = None,
    format: str | None = None,
    split: str | None = None,
    order: str | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    review_column: str | None = None,
    split_column: str | None = None,
    items_id_column: str | None = None,
    users_id_column: str | None = None,
    item_columns: Sequence[str] | None = None,
    user_columns: Sequence[str] | None = None,
    exclude_item_columns: Sequence[str] = (),
    exclude_user_columns: Sequence[str] = (),
    text: TextColumns | None = None,
    id_type: str = "auto",
    delimiter: str | None = None,
    encoding: str | None = None,
    reviews: bool = True,
) -> RawTables:
    """Open raw data of any kind.

    Args:
        interactions: any source of `readers.open_source`, one row per interaction; or `folder`, which may also be given here.
        items, users: the same, one row per item or user.
        folder: a folder with the files of a public data set, as it is downloaded.
        format: one of `formats.FORMATS`; recognized by the files by default.
        split, order: see `preparation.prepare_folder`; `None` is that of the format, else `random` and `time`.
        user_column, item_column, rating_column, timestamp_column, review_column, split_column: see `sources.open_interactions`.
        items_id_column, users_id_column: columns of the ids of items and users, see `sources.read_texts`.
        item_columns, user_columns: columns to keep (`None`: all).
        exclude_item_columns, exclude_user_columns: columns to leave out.
        text: role of a text -> its column or columns, see `sources.read_texts`.
        id_type: see `sources.open_interactions`.
        delimiter, encoding: of text files; recognized and UTF-8 by default.
        reviews: format `cllm4rec`: whether to read the reviews.

    Raises:
        MissingFileError, InputError: an argument is wrong or says nothing about the format, or a source cannot be read.
    """
    given = dict(locals())
    if folder is None and _is_raw_folder(interactions):
        folder, interactions = interactions, None
    if format is None and folder is not None and interactions is None:
        format = recognize_format(folder)
    given |= {"folder": folder, "interactions": interactions, "format": format}
    _check_arguments(given)
    texts = check_text_columns(text)
    if format in PRESETS:
        return _open_preset(given, texts)
    form = TextForm(delimiter, encoding or "utf-8")
    files = _named_files(given)
    item_table = None
    rows: pa.Table | pa.RecordBatchReader
    if format in ("cllm4rec", "lcrec"):
        read = read_cllm4rec_files(folder or "", reviews) if format == "cllm4rec" else read_lcrec_files(folder or "", id_type)
        usual = "given" if format == "cllm4rec" else "leave-one-out"
        files |= _found_once({name: list(paths) for name, paths in read.files.items()}, files)
        rows, item_table, columns = read.interactions, read.items, tuple(read.interactions.column_names)
        prefer: dict[str, str | None] = {"items": item_column, "users": user_column}
    else:
        sources: Any = interactions
        usual = "random"
        if format == "recbole":
            found = find_recbole_files(folder or "")
            usual = "random" if "all" in found.interactions else "given"
            texts_found = {name: [path] for name, path in (("items", found.items), ("users", found.users)) if path}
            files |= _found_once({"interactions": list(found.interactions.values()), **texts_found}, files)
            items, users = (found.items if items is None else items), (found.users if users is None else users)
            sources = found.interactions.get("all") or dict(found.interactions)
        _check_given(split, usual, format, folder)
        opened = (open_interactions if folder else _opened)(
            sources,
            user_column=user_column,
            item_column=item_column,
            rating_column=rating_column,
            timestamp_column=timestamp_column,
            review_column=review_column,
            split_column=split_column,
            with_split=(split or usual) == "given",
            id_type=id_type,
            form=form,
        )
        rows, columns = opened.reader, opened.columns
        prefer = {"items": item_column or opened.roles["item_id"], "users": user_column or opened.roles["user_id"]}
    _check_given(split, usual, format, folder)
    if format != "lcrec":
        own = _texts(given, "items", items, prefer["items"], texts, form)
        item_table = item_table if own is None else own
    user_table = _texts(given, "users", users, prefer["users"], texts, form)
    by_rows = format == "lcrec"
    return RawTables(rows, item_table, user_table, files, split or usual, order or ("rows" if by_rows else "time"), columns)


def prepare(
    output: str | Path,
    interactions: TableLike | None = None,
    items: TableLike | None = None,
    users: TableLike | None = None,
    **arguments: Any,
) -> RecommendationData:
    """Read raw data of any kind, prepare it, write a data folder and load it, as `cllm4rec prepare` does.

    Args:
        output: the folder to write.
        interactions, items, users: see `open_raw_data`.
        arguments: arguments of `open_raw_data` and of `preparation.prepare_folder`.

    Raises:
        MissingFileError, InputError, ExistingFileError: as those two functions.

    Example:
        >>> import tempfile
        >>> log = [{"userId": "ann", "movieId": movie, "rating": 5} for movie in (10, 20, 30)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = prepare(Path(folder, "data"), log, [{"movieId": 10, "movie_title": "Up"}], on_missing_item="keep")
        >>> data.items.column("title").to_pylist()
        ['Up', None, None]
    """
    write_raw_data(output, interactions, items, users, **arguments)
    return RecommendationData.load(output)


def write_raw_data(
    output: str | Path,
    interactions: TableLike | None = None,
    items: TableLike | None = None,
    users: TableLike | None = None,
    *,
    sources: Sequence[dict[str, str]] | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Do what `prepare` does, without loading the folder.

    Args:
        output, interactions, items, users, arguments: see `prepare`.
        sources: record of the sources, `{"table", "file", "sha256"}`; by default it is made from the files.
        overwrite: whether to replace an existing data folder.
        on_step: called with the name of each step when it begins.

    Returns:
        The contents of `dataset.json`.
    """
    begin = on_step or (lambda step: None)
    check_output(Path(output), overwrite)
    begin("reading")
    names = open_raw_data.__kwdefaults__ or {}
    reading = {name: arguments.pop(name) for name in list(arguments) if name in names}
    raw = open_raw_data(interactions, items, users, **reading)
    begin("checksums")
    if sources is None:
        sources = [
            {"table": name, "file": Path(file).name, "sha256": checksum(file)}
            for name, files in raw.files.items()
            for file in files
        ]
    return prepare_folder(
        raw.interactions,
        raw.items,
        raw.users,
        output,
        split=raw.split,
        order=raw.order,
        source_columns=raw.columns,
        sources=sources,
        overwrite=overwrite,
        on_step=on_step,
        **{"on_missing_item": raw.on_missing_item} | {name: value for name, value in arguments.items() if value is not None},
    )


def _opened(source: Any, **arguments: Any) -> OpenInteractions:
    """Open interactions; where a file of a public data set is named that cannot be read alone, name its folder."""
    try:
        return open_interactions(source, **arguments)
    except InputError as error:
        if not isinstance(source, (str, Path)) or "no column" not in str(error) or not Path(source).is_file():
            raise
        folder = Path(source).resolve().parent
        try:
            name = recognize_format(folder)
        except (InputError, MissingFileError):
            raise error from None
        raise InputError(f"{error}; or pass folder={str(folder)!r}, which has the files of format {name}") from error


def _is_raw_folder(source: Any) -> TypeGuard[str | Path]:
    """Check whether a source is a folder that is neither one of Parquet files nor a saved data set."""
    if not isinstance(source, (str, Path)) or not Path(source).is_dir():
        return False
    return not any(any(Path(source).glob(pattern)) for pattern in ("*.parquet", "dataset_*.json"))


def _check_arguments(given: dict[str, Any]) -> None:
    """Check that there is one source of interactions, and that every argument says something about it."""
    form, folder = given["format"], given["folder"]
    if folder is None and form is not None:
        raise InputError(f"format is {form!r}, the form of a folder; give the folder of the data set in place of interactions")
    if (folder is None) == (given["interactions"] is None):
        raise InputError("give either interactions, or folder and format")
    if form is not None and form not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    for name in MEANINGLESS[form]:
        value = given[name]
        if not (value is None or value in ("auto", [], (), {}) or (name == "reviews" and value)):
            what = f"format={form!r}" if form else "interactions"
            raise InputError(
                f"{'reviews=False' if name == 'reviews' else name} is given, but says nothing about {what}; leave it out"
            )


def _check_given(split: str | None, usual: str, form: str | None, folder: str | Path | None) -> None:
    if split == "given" and usual != "given" and form is not None:
        raise InputError(f"split is 'given', but the files of {folder} have no split; choose another, or leave it out")


def _found_once(found: dict[str, list[Any]], named: dict[str, list[str | Path]]) -> dict[str, list[Any]]:
    """Check that no table is both in the folder and named."""
    for name, paths in found.items():
        if name in named:
            raise InputError(f"{name} is {named[name][0]}, but the folder has {paths[0]}; leave one of them out")
    return found


def _open_preset(given: dict[str, Any], texts: dict[str, tuple[str, ...]]) -> RawTables:
    """Open the files of a preset; items that the caller names replace those of the preset."""
    preset = PRESETS[given["format"]]
    _check_given(given["split"], preset.split, preset.name, given["folder"])
    found = find_preset_files(preset.name, given["folder"])
    files: dict[str, list[str | Path]] = {"interactions": [found.interactions]}
    form = found.interaction_form
    known = open_source(found.interactions, form.text, everything=False).columns
    named: dict[str, Any] = {
        f"{role.removesuffix('_id')}_column": column for role, column in form.columns.items() if column in known
    }
    opened = open_interactions(
        found.interactions,
        **named,
        id_type=given["id_type"],
        form=form.text,
        time_format=preset.time_format,
        expand=preset.expand,
    )
    items = _texts(given, "items", given["items"], None, texts)
    if items is None and found.items is not None:
        files["items"] = [found.items]
        form = found.item_form
        known = open_source(found.items, form.text).columns
        roles = {role: tuple(name for name in names if name in known) for role, names in form.texts.items()}
        items = read_texts(
            found.items,
            name="item_id",
            id_column=form.columns["id"],
            columns=given["item_columns"] or [name for name in form.keep if name in known],
            exclude=given["exclude_item_columns"],
            text={role: names for role, names in {**roles, **texts}.items() if names and role in roles_of("item_id")},
            separators=form.separators,
            flags=form.flags,
            id_type=given["id_type"],
            form=form.text,
        )
    users = _texts(given, "users", given["users"], None, texts)
    split, files = given["split"] or preset.split, _named_files(given) | files
    missing = "error" if given["items"] is not None else preset.on_missing_item
    return RawTables(opened.reader, items, users, files, split, given["order"] or "time", opened.columns, missing)


def _texts(
    given: dict[str, Any],
    name: str,
    source: TableLike | None,
    prefer: str | None,
    texts: dict[str, tuple[str, ...]],
    form: TextForm | None = None,
) -> pa.Table | None:
    """Read the texts of items or users as the arguments say, if there are any."""
    if source is None:
        return None
    entity = name.removesuffix("s")
    return read_texts(
        source,
        name=f"{entity}_id",
        id_column=given[f"{name}_id_column"],
        prefer=prefer,
        columns=given[f"{entity}_columns"],
        exclude=given[f"exclude_{entity}_columns"],
        text={role: names for role, names in texts.items() if role in roles_of(f"{entity}_id")},
        id_type=given["id_type"],
        form=form,
    )


def _named_files(given: dict[str, Any]) -> dict[str, list[str | Path]]:
    """Return table -> its file, for the tables that the caller names and that are not in memory."""
    names = ("interactions", "items", "users")
    return {name: [given[name]] for name in names if given[name] is not None and not is_in_memory(given[name])}
