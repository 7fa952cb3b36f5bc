"""A bounded queue in front of the model: what waits is taken together, so that callers share forward passes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from modeling_cllm4rec.core.handler import BadRequest, Question

log = logging.getLogger(__name__)
Answer = Callable[[Sequence[Question]], list[Any]]


class QueueFull(Exception):
    """More people wait than the queue holds; `waiting` of at most `capacity`."""

    def __init__(self, waiting: int, capacity: int) -> None:
        super().__init__(f"{waiting} people wait, {capacity} may")
        self.waiting, self.capacity = waiting, capacity


class Waiting(NamedTuple):
    """A call in the queue, and where its answer is put."""

    question: Question
    answered: asyncio.Future[Any]


class Batcher:
    """One worker thread computes; meanwhile calls wait, and the next turn takes them together.

    Args:
        answer: answers several questions at once, in the worker thread.
        most_people: people of one turn; a call with more of them has a turn of its own.
        capacity: people who may wait; a call that finds no room is refused at once.
        together: False takes one call at a time.
        wait_s: seconds that a turn waits for further calls when the queue was empty. What arrives while another turn is computed
            is taken together in any case.

    Attributes:
        turns, calls: turns and calls answered so far.
    """

    def __init__(self, answer: Answer, *, most_people: int, capacity: int, together: bool = True, wait_s: float = 0.0) -> None:
        self.most_people, self.capacity, self.together, self.wait_s = most_people, capacity, together, wait_s
        self.turns = self.calls = self.people_waiting = 0
        self._answer = answer
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommending")

    async def ask(self, question: Question) -> Any:
        """The answer of the model. Cancelled before its turn came, the question is never computed.

        Raises:
            QueueFull: there is no room.
            BadRequest: the model refused the question.
        """
        if self.people_waiting + len(question.people) > self.capacity:
            raise QueueFull(self.people_waiting, self.capacity)
        waiting = Waiting(question, asyncio.get_running_loop().create_future())
        self.people_waiting += len(question.people)
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.answered

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            await self._arrived.wait()
            if self.together and self.wait_s:
                await asyncio.sleep(self.wait_s)
            turn = self._take()
            if turn:
                await self._compute(turn)

    def _take(self) -> list[Waiting]:
        """The calls of the next turn, without those whose caller went away."""
        turn: list[Waiting] = []
        people = 0
        while self._queue and (not turn or (self.together and people + len(self._queue[0].question.people) <= self.most_people)):
            waiting = self._queue.popleft()
            self.people_waiting -= len(waiting.question.people)
            if not waiting.answered.cancelled():
                turn.append(waiting)
                people += len(waiting.question.people)
        if not self._queue:
            self._arrived.clear()
        return turn

    async def _compute(self, turn: list[Waiting]) -> None:
        questions = [waiting.question for waiting in turn]
        answers = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer_each, questions)
        self.turns += 1
        self.calls += len(turn)
        for waiting, answer in zip(turn, answers, strict=True):
            if waiting.answered.done():  # its caller went away meanwhile
                continue
            if isinstance(answer, Exception):
                waiting.answered.set_exception(answer)
            else:
                waiting.answered.set_result(answer)

    def _answer_each(self, questions: list[Question]) -> list[Any]:
        """An answer or an exception for each question; where together fails, each is asked alone, so that one spoils no other."""
        try:
            return self._answer(questions)
        except Exception as error:
            if len(questions) > 1:
                return [answer for question in questions for answer in self._answer_each([question])]
            if not isinstance(error, BadRequest):
                log.exception("a question failed")
            return [error]

    def close(self) -> None:
        """Let the worker finish what it computes and end it."""
        self._worker.shutdown(wait=True)


__all__ = ["Batcher", "QueueFull"]
