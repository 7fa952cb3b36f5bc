"""Find items by words of their titles, in Arrow and on the server: the browser never gets the catalogue."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modeling_cllm4rec.core.catalogue import Catalogue
from modeling_cllm4rec.core.errors import InputError


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        items: item indices, best first, as many as were asked for.
        total: how many items there are in all.
    """

    items: np.ndarray
    total: int


class TitleSearch:
    """Search in the titles and ids of a catalogue; capitals and accents do not matter.

    A search in 100,000 titles takes about 0.1 s.

    Example:
        >>> search = TitleSearch(Catalogue(pa.table({"item_id": ["a", "b"], "title": ["Crème brûlée", "Ice cream"]})))
        >>> search.find("CREME").items.tolist()
        [0]
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.ids = pc.utf8_lower(pc.cast(catalogue.ids.array, pa.large_string()))
        titles = self.ids
        if "title" in catalogue.table.column_names:
            titles = pc.coalesce(catalogue.table["title"].combine_chunks().cast(pa.large_string()), self.ids)
        self.titles = _folded(titles)

    def find(self, query: str, limit: int = 8) -> Found:
        """Items whose title holds every word of the query, or whose id is the query.

        First the item with that id, then titles that start with the query, then those in which every word of the query starts
        a word, then the rest; shorter titles first among equals, then the lower item index.

        Args:
            query: words, whole or their beginnings or middles; without any letter or digit nothing is found.
            limit: how many items at most.

        Raises:
            InputError: a limit below 1.
        """
        if limit < 1:
            raise InputError(f"limit is {limit}; it must be 1 or more")
        rows = self.all_with(query)
        return Found(self._ordered(rows, query)[:limit], len(rows))

    def all_with(self, query: str) -> np.ndarray:
        """Item indices, ascending, of all items that `find` would find."""
        words = _words(query)
        matches = pc.equal(self.ids, query.strip().lower())
        if words:
            titled = pc.match_substring(self.titles, words[0])
            for word in words[1:]:
                titled = pc.and_(titled, pc.match_substring(self.titles, word))
            matches = pc.or_(matches, titled)
        return np.asarray(np.flatnonzero(matches.to_numpy(zero_copy_only=False)))

    def knows_a_word(self, query: str) -> bool:
        """Return whether any word of a text is in any title; a text without one is probably nonsense.

        Example:
            >>> TitleSearch(Catalogue(["b1"])).knows_a_word("qqq")
            False
        """
        return any(pc.any(pc.match_substring(self.titles, word)).as_py() for word in _words(query))

    def _ordered(self, rows: np.ndarray, query: str) -> np.ndarray:
        titles, words = self.titles.take(pa.array(rows)), _words(query)
        has_id = pc.equal(self.ids.take(pa.array(rows)), query.strip().lower())
        starts = pc.starts_with(titles, " ".join(words))
        in_words = [pc.match_substring_regex(titles, rf"\b{re.escape(word)}") for word in words]
        at_starts = np.all([one.to_numpy(zero_copy_only=False) for one in in_words], axis=0) if words else np.zeros(len(rows))
        lengths = pc.utf8_length(titles).to_numpy(zero_copy_only=False)
        flags = [~at_starts.astype(bool), *(~flag.to_numpy(zero_copy_only=False).astype(bool) for flag in (starts, has_id))]
        return np.asarray(rows[np.lexsort((rows, lengths, *flags))])


def _folded(texts: pa.Array) -> pa.Array:
    """Small letters without accents."""
    return pc.replace_substring_regex(pc.utf8_lower(pc.utf8_normalize(texts, "NFKD")), r"\p{Mn}+", "")


def _words(query: str) -> list[str]:
    """Return the folded words of a query that contain a letter or a digit."""
    folded = _folded(pa.array([query], pa.large_string()))[0].as_py()
    return [word for word in folded.split() if any(character.isalnum() for character in word)]
