"""Random numbers from counters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from modeling_cllm4rec.corpora.counter_draws import counter_draws


def splitmix64(start: int, count: int) -> list[int]:
    """Return the first numbers of the generator as its authors write it."""
    state, outputs = start, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = state
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(mixed ^ (mixed >> 31))
    return outputs


def test_the_generator_is_that_of_its_authors() -> None:
    # https://prng.di.unimi.it/splitmix64.c with the seed 1234567
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]
    start = int(np.random.SeedSequence((3, 1)).generate_state(1, np.uint64)[0])
    draws = counter_draws((3, 1), np.arange(5))
    assert draws.tolist() == [(output >> 11) / 2**53 for output in splitmix64(start, 5)]
    nested = splitmix64(splitmix64(start, 5)[4], 3)
    assert counter_draws((3, 1), np.array([4]), np.array([2])).tolist() == [(nested[2] >> 11) / 2**53]


def test_a_draw_depends_on_its_counters_alone() -> None:
    users, places = np.array([5, 5, 9, 2**40]), np.array([0, 1, 0, 7])
    together = counter_draws((1, 2), users, places)
    alone = [counter_draws((1, 2), users[[row]], places[[row]])[0] for row in range(4)]
    assert together.tolist() == alone
    assert len({*together, *counter_draws((1, 3), users, places), *counter_draws((2, 1), users, places)}) == 12
    assert not len(counter_draws((0,), np.zeros(0, np.int64)))


@pytest.mark.parametrize("counters", [(np.arange(20_000),), (np.repeat(np.arange(200), 100), np.tile(np.arange(100), 200))])
def test_draws_are_uniform_and_independent(counters: tuple[np.ndarray, ...]) -> None:
    draws = counter_draws((0, 0), *counters)
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 0.001
    for lag in (1, 100):
        assert abs(np.corrcoef(draws[lag:], draws[:-lag])[0, 1]) < 4 / len(draws) ** 0.5
