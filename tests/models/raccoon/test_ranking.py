import random

import pytest

from latent_drift.models.ranking import _BLOCK, Ranking


def entries(ranking):
    return [pair for scores, tickets in zip(ranking._scores, ranking._tickets, strict=True) for pair in zip(scores, tickets, strict=True)]


def drained(ranking):
    return [ranking.pop() for _ in range(len(ranking))]


@pytest.mark.parametrize("draw", [random.random, lambda: random.choice([0.0, 0.5, 1.0]), lambda: 1.0], ids=["spread", "few", "equal"])
@pytest.mark.parametrize("size", [1, 7, 3 * _BLOCK, 5000])
def test_agrees_with_a_sorted_list_over_a_long_life(draw, size):
    random.seed(size)
    ranking, plain = Ranking(), []
    for ticket in range(2 * size):
        score = draw()
        ranking.add(score, ticket)
        plain.append((score, ticket))
        if ticket % 3 == 2:
            gone = plain.pop(random.randrange(len(plain)))
            ranking.remove(*gone)
    plain.sort()
    assert entries(ranking) == plain
    assert len(ranking) == len(plain)
    assert (ranking.lowest, ranking.lowest_score) == (plain[0], plain[0][0])
    assert list(ranking._highest) == [scores[-1] for scores in ranking._scores]
    assert drained(ranking) == [ticket for _, ticket in plain]
    assert (len(ranking), ranking._scores, list(ranking._highest)) == (0, [], [])
    with pytest.raises(IndexError):
        _ = ranking.lowest


def test_signed_zeros_are_equal():
    ranking = Ranking()
    for ticket, score in enumerate([0.0, -0.0, 0.0]):
        ranking.add(score, ticket)
    ranking.remove(-0.0, 0)
    assert drained(ranking) == [1, 2]


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_blocks_neither_grow_long_nor_pile_up_short(order):
    ranking, count = Ranking(), 100 * _BLOCK
    for i in range(count):
        ranking.add(float(i if order == "ascending" else -i), i)
    assert max(map(len, ranking._scores)) <= _BLOCK
    assert len(ranking._scores) <= 2 * count / _BLOCK + 1
    for i in range(count):  # one in twenty remains: joined, not a hundred blocks of a few
        if i % 20:
            ranking.remove(float(i if order == "ascending" else -i), i)
    assert len(ranking) == count // 20
    assert len(ranking._scores) <= 8 * len(ranking) / _BLOCK + 1
    expected = range(0, count, 20)
    assert drained(ranking) == list(expected if order == "ascending" else reversed(expected))
