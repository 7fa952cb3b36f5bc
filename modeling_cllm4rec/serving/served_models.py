"""The model that is served, and how another one takes its place without losing a call."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modeling_cllm4rec.commands.recommendation_parts import fingerprint_of_model
from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.handler import BadRequest, answer
from modeling_cllm4rec.core.questions import ItemQuestion, Question
from modeling_cllm4rec.core.similar_items import most_similar
from modeling_cllm4rec.serving.dynamic_batching import Batcher
from modeling_cllm4rec.serving.error_responses import Refused
from modeling_cllm4rec.serving.metrics import Metrics
from modeling_cllm4rec.serving.schemas import ModelInfo
from modeling_cllm4rec.serving.settings import ServiceSettings

log = logging.getLogger(__name__)
Load = Callable[[str], Any]


class ServedModel:
    """A model with its queue.

    Args:
        model: a recommender that can recommend.
        settings: settings of the service.
        metrics: counts the batches.
        load_seconds: seconds that loading took.

    Attributes:
        info: what `/health` says of it.
        batcher: its queue.

    Raises:
        InputError: the model cannot recommend or has no catalogue.
    """

    def __init__(self, model: Any, settings: ServiceSettings, metrics: Metrics, load_seconds: float = 0.0) -> None:
        model.check_ready()
        self.model = model.eval()
        model.warm_up()
        self.info = model_info(model, load_seconds)
        size = settings.batch_size or model.default_batch_size
        self.batcher = Batcher(
            functools.partial(answer_questions, model, batch_size=size),
            max_batch_size=size,
            capacity=settings.queue,
            batching=settings.batching,
            wait_s=settings.wait_ms / 1000,
            on_batch=metrics.count_batch,
        )

    def try_out(self) -> None:
        """Answer one question, so that broken weights or a broken tokenizer are noticed before they are served.

        Raises:
            CLLM4RecError: the model cannot answer.
        """
        first = self.model.require_catalogue().ids.ids_of([0])
        question = self.model.read_question(histories=[first], k=1, exclude_seen=False)
        answer_questions(self.model, [question, ItemQuestion.read(self.model, first, 1)], 1)
        if self.model.reads_queries:
            self.model.build_query_prompts(["a"])


class ServedModels:
    """The model that is served now.

    A call belongs to the model that was served when its body had arrived. A model that was replaced answers the calls in its
    queue and is then dropped.

    Args:
        model: the first model.
        settings: settings of the service.
        metrics: counts batches and reloads.
        load: function of a folder or Hub name that returns a model; None allows no reload.
        load_seconds: seconds that loading the first model took.

    Attributes:
        current: the model that is served.
        source: name of the first model.
    """

    def __init__(
        self,
        model: Any,
        settings: ServiceSettings,
        metrics: Metrics,
        load: Load | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        self.settings, self.metrics, self.load = settings, metrics, load
        self.source = str(model.name_or_path)
        self.current = ServedModel(model, settings, metrics, load_seconds)
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        metrics.show_model(self.current.info)
        metrics.queue_capacity.set(settings.queue)
        metrics.users_waiting.set_function(lambda: float(self.users_waiting))

    @property
    def users_waiting(self) -> int:
        """Users and items in the queue of the model that is served."""
        return self.current.batcher.users_waiting

    @property
    def ready(self) -> bool:
        """Whether a call would be answered."""
        batcher = self.current.batcher
        return batcher.running and batcher.users_waiting < batcher.capacity

    async def reload(self, name: str | None = None) -> tuple[ModelInfo, ModelInfo]:
        """Load a model while the other one is served, try it out, and serve it from then on.

        Args:
            name: folder or Hub name; None takes `source`, whose folder may be a link to another one by now.

        Returns:
            The new model and the one before.

        Raises:
            Refused: there is no function to load with, or a reload is running.
            CLLM4RecError: the model cannot be loaded or cannot answer; the one before is still served.
        """
        if self.load is None:
            raise Refused(409, BadRequest("model", name, "the model that is served", "start a server with cllm4rec serve"))
        if self._reloading.locked():
            raise Refused(409, BadRequest("model", name, "one reload at a time", "ask again when the running one has ended"))
        async with self._reloading:
            outcome = "failed"
            try:
                new = await asyncio.to_thread(self._loaded, self.load, self.source if name is None else name)
                outcome = "done"
            finally:
                self.metrics.reloads.labels(outcome).inc()
            old, self.current = self.current, new
            new.batcher.start()
            self.metrics.show_model(new.info)
            retiring = asyncio.create_task(old.batcher.drain())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            log.warning("serving %s (%s) in place of %s (%s)", new.info.name, new.info.revision, old.info.name, old.info.revision)
            return new.info, old.info

    async def reload_or_log(self) -> None:
        """Reload `source`, and log an error of the model in one line: nobody waits for an answer."""
        try:
            await self.reload()
        except (CLLM4RecError, Refused) as error:
            log.error("the model was not replaced: %s", error)
        except Exception:
            log.exception("the model was not replaced")

    def _loaded(self, load: Load, name: str) -> ServedModel:
        started = time.perf_counter()
        new = ServedModel(load(name), self.settings, self.metrics, time.perf_counter() - started)
        new.try_out()
        return new

    async def close(self) -> None:
        """Answer all calls in the queues and stop."""
        await asyncio.gather(self.current.batcher.drain(), *self._retiring)


def model_info(model: Any, load_seconds: float) -> ModelInfo:
    """Return what `/health` says of a model."""
    name = str(model.name_or_path)
    return ModelInfo(
        name=name,
        folder=str(Path(name).resolve()) if Path(name).is_dir() else None,
        revision=fingerprint_of_model(model, name).rpartition("@")[2],
        model_type=model.config.model_type,
        items=len(model.catalogue),
        users=0 if model.users is None else len(model.users),
        loaded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        load_seconds=round(load_seconds, 3),
    )


def answer_questions(model: Any, questions: Sequence[Question | ItemQuestion], batch_size: int) -> list[dict[str, Any]]:
    """Answer questions together: users share forward passes; each question for similar items is one pass over the catalogue.

    Returns:
        The answer of `core.handler.answer` or of `similar` for each question, in their order.
    """
    for_users = [one for one in questions if not isinstance(one, ItemQuestion)]
    recommended = iter(answer(model, for_users, batch_size))
    return [similar(model, one) if isinstance(one, ItemQuestion) else next(recommended) for one in questions]


def similar(model: Any, question: ItemQuestion) -> dict[str, Any]:
    """Return `{"results": [{"target_item", "items": [{"item", "title", "score"}, ...]}, ...]}`, items best first."""
    catalogue = model.catalogue
    best, scores = most_similar(model, question.items, question.k, question.candidates)
    results = []
    for target, row, cosines in zip(catalogue.ids.ids_of(question.items), best, scores, strict=True):
        found = row[row >= 0]
        rows = zip(catalogue.ids.ids_of(found), catalogue.titles(found), cosines, strict=False)
        items = [{"item": item, "title": title, "score": float(score)} for item, title, score in rows]
        results.append({"target_item": target, "items": items})
    return {"results": results}


__all__ = ["ServedModel", "ServedModels", "answer_questions"]
