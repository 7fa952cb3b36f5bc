"""Dynamic batching: a bounded queue of calls, which share forward passes of the model."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.core.questions import Question

log = logging.getLogger(__name__)
Answer = Callable[[Sequence[Question]], list[Any]]


class QueueFull(Exception):
    """The queue is full: `waiting` users of at most `capacity`."""

    def __init__(self, waiting: int, capacity: int) -> None:
        super().__init__(f"{waiting} of at most {capacity} users are waiting")
        self.waiting, self.capacity = waiting, capacity


class Waiting(NamedTuple):
    """A call in the queue and the future of its answer."""

    question: Question
    answered: asyncio.Future[Any]


class Batcher:
    """A queue whose single worker thread answers waiting calls in batches.

    Calls that arrive during the computation of a batch form the next one.

    Args:
        answer: function that answers a batch of questions, called in the worker thread.
        max_batch_size: users per batch; a call with more users is a batch of its own.
        capacity: users who may wait; further calls are rejected immediately.
        batching: False answers one call at a time.
        wait_s: seconds that a batch waits for further calls if the queue was empty.

    Attributes:
        batches, calls: batches and calls completed so far.
    """

    def __init__(self, answer: Answer, *, max_batch_size: int, capacity: int, batching: bool = True, wait_s: float = 0.0) -> None:
        self.max_batch_size, self.capacity, self.batching, self.wait_s = max_batch_size, capacity, batching, wait_s
        self.batches = self.calls = self.users_waiting = 0
        self._answer = answer
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommending")

    async def ask(self, question: Question) -> Any:
        """Return the answer of the model. A call that is cancelled while it waits is never computed.

        Raises:
            QueueFull: the queue is full.
            BadRequest: the question is invalid.
        """
        if self.users_waiting + len(question) > self.capacity:
            raise QueueFull(self.users_waiting, self.capacity)
        waiting = Waiting(question, asyncio.get_running_loop().create_future())
        self.users_waiting += len(question)
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.answered

    async def run(self) -> None:
        """Answer batches until cancelled."""
        while True:
            await self._arrived.wait()
            if self.batching and self.wait_s:
                await asyncio.sleep(self.wait_s)
            batch = self._take()
            if batch:
                await self._compute(batch)

    def _take(self) -> list[Waiting]:
        """Return the calls of the next batch, without cancelled ones."""
        batch: list[Waiting] = []
        users = 0
        while self._queue and (not batch or (self.batching and users + len(self._queue[0].question) <= self.max_batch_size)):
            waiting = self._queue.popleft()
            self.users_waiting -= len(waiting.question)
            if not waiting.answered.cancelled():
                batch.append(waiting)
                users += len(waiting.question)
        if not self._queue:
            self._arrived.clear()
        return batch

    async def _compute(self, batch: list[Waiting]) -> None:
        questions = [waiting.question for waiting in batch]
        answers = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer_each, questions)
        self.batches += 1
        self.calls += len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answered.done():  # the caller has disconnected
                continue
            if isinstance(answer, Exception):
                waiting.answered.set_exception(answer)
            else:
                waiting.answered.set_result(answer)

    def _answer_each(self, questions: list[Question]) -> list[Any]:
        """Return an answer or an exception for each question.

        A failed batch is retried one by one, so that one bad request cannot fail the others.
        """
        try:
            return self._answer(questions)
        except Exception as error:
            if len(questions) > 1:
                return [answer for question in questions for answer in self._answer_each([question])]
            if not isinstance(error, BadRequest):
                log.exception("a question failed")
            return [error]

    def close(self) -> None:
        """Wait for the batch in progress and stop the worker."""
        self._worker.shutdown(wait=True)


__all__ = ["Batcher", "QueueFull"]
