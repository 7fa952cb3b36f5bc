"""The training scheme of the released CLLM4Rec research code, reimplemented from its description for training_speed.py.

Documents are read in file order. A batch is text with ID words, tokenized when it is read and padded to its longest document. The
frozen backbone processes the prompt and caches keys and values, then processes the main text. The head computes logits at every
position of the padded main text. All computation is fp32, and Adam updates whole tables.

To minimize the same objective as our training, it departs from the released code in four points. The first main token is also
predicted. Prompts of different lengths in a batch are masked. Held-out items are the targets of a recommendation and are
regularized. Histories are reordered. It uses this package's templates and fast tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_cllm4rec.cllm4rec.documents import HistoryCorpus
from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import SIDES, CLLM4RecForRecommendation, Side
from modeling_cllm4rec.cllm4rec.prompts import Prompts, tokenize_template
from modeling_cllm4rec.core.catalogue import text_column
from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.core.language_model import end_tokens
from modeling_cllm4rec.core.prompt_assembly import build_input_ids, pad_right
from modeling_cllm4rec.corpora.data_folder import RecommendationData
from modeling_cllm4rec.corpora.item_texts import BIOGRAPHY, ITEM_TEXTS

IGNORED = -100

Pair = tuple[np.ndarray, np.ndarray]
"""Token ids of a document: prompt, main text."""


@dataclass(frozen=True)
class Improvements:
    """Changes to the released scheme, to measure the effect of each; all off by default.

    Attributes:
        one_pass: process prompt and main text in one backbone pass, without a cache.
        tokenized_once: tokenize texts before training and insert ID tokens by arithmetic.
        main_tokens_only: compute no logits for padding.
    """

    one_pass: bool = False
    tokenized_once: bool = False
    main_tokens_only: bool = False


def text_documents(data: RecommendationData, prompts: Prompts) -> list[tuple[str, str]]:
    """Return (prompt with ID words, main text) of each text document, in the order of `TextCorpus`."""
    documents: list[tuple[str, str]] = []
    for column in ITEM_TEXTS:
        if column in data.items.column_names:
            for item, text in enumerate(text_column(data.items, column)):
                documents.append((prompts.item_text.format(item=f"<item_{item}>", column=column), text))
    if BIOGRAPHY in data.users.column_names:
        for user, text in enumerate(text_column(data.users, BIOGRAPHY)):
            documents.append((prompts.biography.format(user=f"<user_{user}>"), text))
    for row in data.reviews().to_pylist():
        ids = {"user": f"<user_{row['user_index']}>", "item": f"<item_{row['item_index']}>"}
        documents.append((prompts.review.format(**ids), row["review"]))
    return [(prompt, text) for prompt, text in documents if text]


class ReleasedScheme:
    """Losses and optimizers of the released scheme for the documents of a data folder.

    Args:
        model: model whose ID tables are trained in place.
        tokenizer: a `CLLM4RecTokenizer`.
        data: the prepared folder.
        prompts: templates.
        histories: the training histories, reordered and held out as in our stages.
        max_text_tokens: truncate main texts to this number of tokens; None does not truncate.
        mask_share: share of a history held out in finetuning.
        lambda_c: weight of the mutual regularization, scaled as the released code scales it.
        lr: learning rate of Adam.
        improvements: changes to the released scheme.

    Raises:
        InputError: a history does not fit the backbone's context.
    """

    def __init__(
        self,
        model: CLLM4RecForRecommendation,
        tokenizer: PreTrainedTokenizerBase,
        data: RecommendationData,
        prompts: Prompts,
        histories: HistoryCorpus,
        *,
        max_text_tokens: int | None = None,
        mask_share: float = 0.2,
        lambda_c: float = 1.0,
        lr: float = 1e-3,
        improvements: Improvements | None = None,
    ) -> None:
        self.model, self.tokenizer, self.prompts, self.histories = model, tokenizer, prompts, histories
        self.max_text_tokens, self.mask_share, self.lambda_c = max_text_tokens, mask_share, lambda_c
        self.improvements = improvements or Improvements()
        self.first_user = model.config.id_offset
        self.first_item = model.config.id_offset + data.num_users
        self.begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = end_tokens(tokenizer)
        self.segments = tokenize_template(prompts.interactions, tokenizer)
        self.texts = text_documents(data, prompts)
        self.tokenized = self._tokenize(self.texts) if self.improvements.tokenized_once else []
        words = max(
            len(build_input_ids(segments, user=0))
            for segments in (self.segments, tokenize_template(prompts.recommendation, tokenizer))
        )
        longest = int(histories.lengths.max(initial=0))
        if longest + words > model.config.context_length:
            raise InputError(
                f"the longest history has {longest} items, its prompt {words} words more, and the backbone's context holds "
                f"{model.config.context_length} tokens: the released scheme does not shorten histories; use a backbone with a "
                "longer context, or other data"
            )
        self.optimizers = {
            side: torch.optim.Adam([table.weight for table in model.tables(side)], lr=lr, foreach=False, fused=False)
            for side in SIDES
        }

    def train(self, kind: str, documents: np.ndarray, batch_size: int, epoch: int = 0) -> None:
        """Train one pass over documents in ascending order, with one optimizer step per batch.

        Args:
            kind: `"collaborative"` (L pass), `"content"` (C pass) or `"recommendation"` (finetuning).
            documents: numbers of text documents in a C pass, user indices otherwise.
        """
        optimizer = self.optimizers["content" if kind == "content" else "collaborative"]
        documents = np.sort(documents)
        for batch in np.split(documents, range(batch_size, len(documents), batch_size)):
            optimizer.zero_grad(set_to_none=True)
            self.loss(kind, batch, epoch).backward()
            optimizer.step()

    def loss(self, kind: str, documents: np.ndarray, epoch: int = 0) -> torch.Tensor:
        """Return the () mean nll of a batch's main tokens (in finetuning, of its users) plus the summed regularization."""
        if kind == "recommendation":
            return self._recommendation_loss(documents, epoch)
        if kind == "collaborative":
            return self._main_text_loss(self._interactions(documents, epoch), "collaborative")
        pairs = [self.tokenized[number] for number in documents] if self.tokenized else None
        return self._main_text_loss(pairs or self._tokenize([self.texts[number] for number in documents]), "content")

    def states(self, pairs: Sequence[Pair], side: Side) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states that predict the main tokens, and the main tokens.

        Returns:
            (B, M, K) states, and (B, M) token ids, -100 at padding.
        """
        main = torch.from_numpy(pad_right([words for _, words in pairs], IGNORED)).to(self._device)
        lengths = torch.tensor([len(prompt) for prompt, _ in pairs], device=self._device)
        offsets = torch.arange(main.shape[1], device=self._device)
        if self.improvements.one_pass:
            ids, mask = self._padded([np.concatenate(pair) for pair in pairs])
            hidden = self.model.hidden_states(ids, mask, side)
            positions = (lengths[:, None] - 1 + offsets).clamp(max=ids.shape[1] - 1)
            return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])), main
        prompts, prompt_mask = self._padded([prompt for prompt, _ in pairs])
        body = self.model.backbone.base_model
        first = body(
            inputs_embeds=self.model.embed_tokens(prompts, side), attention_mask=prompt_mask, use_cache=True, return_dict=True
        )
        second = body(
            inputs_embeds=self.model.embed_tokens(main.clamp(min=0), side),
            attention_mask=torch.cat([prompt_mask, (main >= 0).long()], dim=1),
            position_ids=(lengths[:, None] + offsets).clamp(max=self.model.config.context_length - 1),
            past_key_values=first.past_key_values,
            use_cache=True,
            return_dict=True,
        )
        last = first.last_hidden_state[torch.arange(len(pairs), device=self._device), lengths - 1]
        return torch.cat([last[:, None], second.last_hidden_state[:, :-1]], dim=1), main

    @property
    def _device(self) -> torch.device:
        return self.model.item_content.weight.device

    def _main_text_loss(self, pairs: Sequence[Pair], side: Side) -> torch.Tensor:
        states, main = self.states(pairs, side)
        labels = main if side == "content" else torch.where(main >= 0, main - self.first_item, IGNORED)
        if self.improvements.main_tokens_only:
            states, labels = states[labels >= 0], labels[labels >= 0]
        logits = self.model.word_head(states) if side == "content" else self.model.item_logits(states)
        nll = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
        prompts, _ = self._padded([prompt for prompt, _ in pairs])
        return nll + self.lambda_c * self._distance(torch.cat([prompts, main], dim=1), side)

    def _recommendation_loss(self, users: np.ndarray, epoch: int) -> torch.Tensor:
        kept, all_held = self.histories.split_holdout(users, epoch, self.mask_share)
        ids, mask = self._padded(self._recommendation_prompts(users, kept))
        target = torch.zeros(len(users), self.model.num_items, device=self._device)
        for row, held in enumerate(all_held):
            target[row, torch.from_numpy(held).to(self._device)] = 1.0
        log_likelihood = self.model.item_logits(self.model.prompt_state(ids, mask)).log_softmax(-1)
        nll = -(log_likelihood * target).sum(-1).mean()
        held_ids, _ = self._padded([held + self.first_item for held in all_held])
        return nll + self.lambda_c * self._distance(torch.cat([ids, held_ids], dim=1), "collaborative")

    def _distance(self, ids: torch.Tensor, side: Side) -> torch.Tensor:
        """Return the () squared distance to the other side, which is detached, summed over all occurrences of ID tokens."""
        other: Side = "content" if side == "collaborative" else "collaborative"
        tokens = ids[ids >= self.first_user][None]
        own, fixed = self.model.embed_tokens(tokens, side), self.model.embed_tokens(tokens, other).detach()
        return F.mse_loss(own, fixed, reduction="sum")

    def _interactions(self, users: np.ndarray, epoch: int) -> list[Pair]:
        orders = self.histories.reordered(users, epoch)
        if self.improvements.tokenized_once:
            prompts = [build_input_ids(self.segments, user=self.first_user + int(user)) for user in users]
            return list(zip(prompts, [order + self.first_item for order in orders], strict=True))
        template = self.prompts.interactions.removesuffix("{items}").rstrip(" ")
        written = [template.format(user=f"<user_{user}>") for user in users]
        return list(zip(self._prompts(written), self._encode([_item_words(order) for order in orders]), strict=True))

    def _recommendation_prompts(self, users: np.ndarray, histories: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if self.improvements.tokenized_once:
            return self.model.build_prompts(users, histories)
        template = self.prompts.recommendation
        pairs = zip(users, histories, strict=True)
        return self._prompts([template.format(user=f"<user_{user}>", items=_item_words(items)) for user, items in pairs])

    def _tokenize(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        mains = self._encode([text for _, text in texts], literal=True)
        limit = self.max_text_tokens
        closed = [words[:limit] if limit is not None and len(words) >= limit else np.append(words, self.end) for words in mains]
        prompts = self._prompts([prompt for prompt, _ in texts])
        return list(zip(prompts, [words.astype(np.int64) for words in closed], strict=True))

    def _prompts(self, written: list[str]) -> list[np.ndarray]:
        return [np.concatenate([self.begin, ids]).astype(np.int64) for ids in self._encode(written)]

    def _encode(self, texts: list[str], literal: bool = False) -> list[np.ndarray]:
        """Return token ids of texts; in literal texts, ID words are plain text."""
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def _padded(self, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, T) right-padded token ids and their mask."""
        ids = torch.from_numpy(pad_right(rows, 0)).to(self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        return ids, (torch.arange(ids.shape[1], device=self._device) < lengths[:, None]).long()


def _item_words(items: np.ndarray) -> str:
    """Return items as ID words: `<item_3> <item_5>`."""
    return " ".join(f"<item_{item}>" for item in items)
