"""Prompts of the text-only baseline: titles of a history, the title of a candidate, a question with the answers Yes and No."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modeling_cllm4rec.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int64]

OPENING = "A customer chose these products, the oldest first:\n"
BULLET, END_OF_LINE = "- ", "\n"
QUESTION = "Would the same customer choose this product next?\n"
ANSWER = "Answer Yes or No:\n"
YES, NO = "Yes", "No"


class YesNoPrompts:
    """Prompts as token ids: a prefix that all candidates share, and a suffix of one candidate.

    Each segment of text is tokenized separately, so that the concatenation of prefix and suffix is the whole prompt.

    Args:
        tokenizer: of the language model.
        titles: (J,) texts of all items.
        max_history: largest number of titles of a history, the last ones.
        max_title_tokens: longer titles are truncated to this number of tokens.
        context_length: context of the language model in tokens.

    Attributes:
        answers: token ids of Yes and of No (the first token of each).

    Raises:
        InputError: both answers have the same first token, or the longest prompt exceeds the context.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        *,
        max_history: int,
        max_title_tokens: int,
        context_length: int,
    ) -> None:
        def encode(text: str) -> Ids:
            return np.array(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], dtype=np.int64)

        bullet, line = encode(BULLET), encode(END_OF_LINE)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.opening = np.concatenate([np.array(start, dtype=np.int64), encode(OPENING)])
        self.question, self.answer, self.max_history = encode(QUESTION), encode(ANSWER), max_history
        self.lines = [np.concatenate([bullet, encode(title)[:max_title_tokens], line]) for title in titles]
        yes, no = encode(YES), encode(NO)
        if not len(yes) or not len(no) or yes[0] == no[0]:
            raise InputError(
                f"the tokenizer encodes {YES} as {yes.tolist()} and {NO} as {no.tolist()}, with the same first token; "
                "choose a backbone with another tokenizer"
            )
        self.answers = (int(yes[0]), int(no[0]))
        longest = len(self.opening) + len(self.question) + len(self.answer)
        longest += (max_history + 1) * max(map(len, self.lines))
        if longest > context_length:
            raise InputError(
                f"a prompt of {max_history} titles and a candidate may take {longest} tokens, but the backbone's context has "
                f"{context_length}; lower max_history or max_title_tokens (now {max_title_tokens})"
            )

    @property
    def num_items(self) -> int:
        """Size J of the catalogue."""
        return len(self.lines)

    def prefix(self, history: npt.NDArray[np.integer]) -> Ids:
        """Return the (tokens,) before the candidate, for (n,) item indices, oldest first."""
        read = [self.lines[item] for item in history[-self.max_history :]]
        return np.concatenate([self.opening, *read, self.question])

    def suffix(self, item: int) -> Ids:
        """Return the (tokens,) of a candidate, up to the answer."""
        return np.concatenate([self.lines[item], self.answer])
