"""The queue: what shares a turn, what is refused, what is never computed."""

from __future__ import annotations

import asyncio
import threading

import pyarrow as pa
import pytest

from modeling_cllm4rec.core.handler import BadRequest
from modeling_cllm4rec.core.questions import Question
from modeling_cllm4rec.serving.dynamic_batching import Batcher, QueueFull


def question(number: int, users: int = 1) -> Question:
    return Question(pa.array([number] * users), k=1)


class Answers:
    """Names the callers; refuses 13 and breaks on 99; waits at the gate. Remembers its batches."""

    def __init__(self) -> None:
        self.gate, self.turns = threading.Event(), []
        self.gate.set()

    def __call__(self, questions):
        assert self.gate.wait(30)
        names = [one.name(0) for one in questions]
        self.turns.append(names)
        if 13 in names:
            raise BadRequest("query", 13, "other", "ask another")
        if 99 in names:
            raise RuntimeError("broken")
        return names


def running(scenario, answers=None, **settings):
    """Run a scenario, a coroutine function of a batcher and its answers, to its end."""
    answers = answers or Answers()

    async def whole():
        batcher = Batcher(answers, **{"max_batch_size": 4, "capacity": 10, **settings})
        batcher.start()
        try:
            return await asyncio.wait_for(scenario(batcher, answers), 30)
        finally:
            answers.gate.set()
            await batcher.drain()

    return asyncio.run(whole())


async def first_in_work(batcher, answers):
    """Start a call that is computed behind the closed gate, so that the next ones wait."""
    answers.gate.clear()
    first = batcher.ask(question(0))
    while batcher.users_waiting:
        await asyncio.sleep(0.001)
    return first


@pytest.mark.parametrize(("batching", "turns"), [(True, [[0], [1, 2, 3, 4], [5]]), (False, [[0], [1], [2], [3], [4], [5]])])
def test_what_waits_shares_a_turn(batching, turns):
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        rest = [batcher.ask(question(number)) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        answers.gate.set()
        assert await asyncio.gather(first, *rest) == [0, 1, 2, 3, 4, 5]
        assert answers.turns == turns
        assert [(users, calls) for users, calls, _ in batches] == [(len(turn), len(turn)) for turn in turns]
        assert all(seconds >= 0 for _, _, seconds in batches)

    batches = []
    running(scenario, batching=batching, on_batch=lambda *batch: batches.append(batch))


def test_calls_that_arrive_within_the_wait_share_a_turn():
    async def scenario(batcher, answers):
        await asyncio.gather(*[batcher.ask(question(number)) for number in range(3)])
        assert answers.turns == [[0, 1, 2]]

    running(scenario, wait_s=0.05)


def test_a_call_with_more_users_than_a_batch_is_computed_alone():
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        rest = [batcher.ask(question(number, users)) for number, users in ((1, 1), (2, 6), (3, 1))]
        await asyncio.sleep(0.01)
        answers.gate.set()
        await asyncio.gather(first, *rest)
        assert answers.turns == [[0], [1], [2], [3]]

    running(scenario)


def test_a_full_queue_refuses_and_goes_on():
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        waiting = [batcher.ask(question(number, 5)) for number in (1, 2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="10 of at most 10 users are waiting"):
            batcher.ask(question(3))
        answers.gate.set()
        assert await asyncio.gather(first, *waiting) == [0, 1, 2]
        assert await batcher.ask(question(4)) == 4

    running(scenario)


def test_a_caller_who_went_away_is_never_computed():
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        gone, stays = (batcher.ask(question(number)) for number in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.users_waiting == 1  # its place is free at once
        first.cancel()  # in work already: its answer is thrown away
        answers.gate.set()
        assert await stays == 2
        assert answers.turns == [[0], [2]] and batcher.users_waiting == 0

    running(scenario)


def test_one_that_fails_spoils_no_other(caplog):
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        rest = [batcher.ask(question(number)) for number in (1, 13, 99, 2)]
        await asyncio.sleep(0.01)
        answers.gate.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        assert found[:2] == [0, 1] and found[4] == 2
        assert isinstance(found[2], BadRequest) and isinstance(found[3], RuntimeError)

    running(scenario)
    assert not caplog.records  # the callers log their errors


def test_a_batch_that_breaks_is_logged_even_if_each_call_can_be_answered(caplog):
    class Answers:
        gate = threading.Event()

        def __call__(self, questions):
            assert self.gate.wait(30)
            if len(questions) > 1:
                raise RuntimeError("broken")
            return [one.name(0) for one in questions]

    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        rest = [batcher.ask(question(number)) for number in (1, 2)]
        answers.gate.set()
        assert await asyncio.gather(first, *rest) == [0, 1, 2]

    running(scenario, Answers())
    assert [record.message for record in caplog.records] == ["a batch of 2 calls failed and is answered one by one"]


def test_draining_answers_what_waits_and_ends():
    async def scenario(batcher, answers):
        first = await first_in_work(batcher, answers)
        rest = [batcher.ask(question(number)) for number in (1, 2)]
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0.01)
        assert batcher.running and not draining.done()
        answers.gate.set()
        await draining
        assert [one.result() for one in (first, *rest)] == [0, 1, 2]
        assert not batcher.running

    running(scenario)
