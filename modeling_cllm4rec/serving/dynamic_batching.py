"""Dynamic batching: a bounded queue of calls, which share forward passes of the model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from modeling_cllm4rec.core.errors import CLLM4RecError
from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.core.questions import ItemQuestion, Question

log = logging.getLogger(__name__)
Asked = Question | ItemQuestion
Answer = Callable[[Sequence[Asked]], list[Any]]
OnBatch = Callable[[int, int, float], None]
ERRORS_OF_CALLERS = (BadRequest, CLLM4RecError)
"""Errors of a question, which are no fault of the server."""


class QueueFull(Exception):
    """The queue is full: `waiting` users of at most `capacity`."""

    def __init__(self, waiting: int, capacity: int) -> None:
        super().__init__(f"{waiting} of at most {capacity} users are waiting")
        self.waiting, self.capacity = waiting, capacity


class Waiting(NamedTuple):
    """A call in the queue and the future of its answer."""

    question: Asked
    answered: asyncio.Future[Any]


class Batcher:
    """A queue whose single worker thread answers waiting calls in batches.

    Calls that arrive during the computation of a batch form the next one. `start` and `drain` run in an event loop.

    Args:
        answer: function that answers a batch of questions, called in the worker thread.
        max_batch_size: users per batch; a call with more users is a batch of its own.
        capacity: users who may wait; further calls are rejected immediately.
        batching: False answers one call at a time.
        wait_s: seconds that a batch waits for further calls if the queue was empty.
        on_batch: called with users, calls and seconds of each batch.

    Attributes:
        users_waiting: users in the queue.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        max_batch_size: int,
        capacity: int,
        batching: bool = True,
        wait_s: float = 0.0,
        on_batch: OnBatch | None = None,
    ) -> None:
        self.max_batch_size, self.capacity, self.batching, self.wait_s = max_batch_size, capacity, batching, wait_s
        self.users_waiting = 0
        self._answer, self._on_batch = answer, on_batch
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._draining = False
        self._turns: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommending")

    @property
    def running(self) -> bool:
        """Whether calls are answered."""
        return self._turns is not None and not self._turns.done()

    def start(self) -> None:
        """Answer calls from now on."""
        self._turns = asyncio.create_task(self._run())

    async def drain(self) -> None:
        """Answer the calls in the queue, then stop."""
        self._draining = True
        self._arrived.set()
        if self._turns is not None:
            await self._turns
        self._worker.shutdown(wait=True)

    def ask(self, question: Asked) -> asyncio.Future[Any]:
        """Queue a call at once and return the future of its answer. Cancelled while it waits, it is never computed.

        Raises:
            QueueFull: the queue is full.
        """
        if self.users_waiting + len(question) > self.capacity:
            raise QueueFull(self.users_waiting, self.capacity)
        waiting = Waiting(question, asyncio.get_running_loop().create_future())
        self.users_waiting += len(question)
        self._queue.append(waiting)
        self._arrived.set()
        waiting.answered.add_done_callback(lambda _: self._leave(waiting))
        return waiting.answered

    def _leave(self, waiting: Waiting) -> None:
        """Take a cancelled call out of the queue."""
        if waiting.answered.cancelled() and waiting in self._queue:
            self._queue.remove(waiting)
            self.users_waiting -= len(waiting.question)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self.batching and self.wait_s and not self._draining:
                await asyncio.sleep(self.wait_s)
            if batch := self._take():
                await self._compute(batch)
            elif self._draining:
                return

    def _take(self) -> list[Waiting]:
        """Return the calls of the next batch."""
        batch: list[Waiting] = []
        users = 0
        while self._queue and (not batch or (self.batching and users + len(self._queue[0].question) <= self.max_batch_size)):
            waiting = self._queue.popleft()
            self.users_waiting -= len(waiting.question)
            if not waiting.answered.cancelled():  # its callback has yet to run
                batch.append(waiting)
                users += len(waiting.question)
        if not self._queue and not self._draining:
            self._arrived.clear()
        return batch

    async def _compute(self, batch: list[Waiting]) -> None:
        questions, started = [waiting.question for waiting in batch], time.perf_counter()
        answers = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer_each, questions)
        if self._on_batch is not None:
            self._on_batch(sum(map(len, questions)), len(batch), time.perf_counter() - started)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answered.done():  # the caller has disconnected
                continue
            if isinstance(answer, Exception):
                waiting.answered.set_exception(answer)
            else:
                waiting.answered.set_result(answer)

    def _answer_each(self, questions: list[Asked]) -> list[Any]:
        """Return an answer or an exception for each question.

        A failed batch is retried one by one, so that one bad request cannot fail the others. The callers log their exceptions.
        """
        try:
            return self._answer(questions)
        except Exception as error:
            if len(questions) == 1:
                return [error]
            if not isinstance(error, ERRORS_OF_CALLERS):
                log.warning("a batch of %d calls failed and is answered one by one", len(questions), exc_info=True)
            return [answer for question in questions for answer in self._answer_each([question])]


__all__ = ["Batcher", "QueueFull"]
