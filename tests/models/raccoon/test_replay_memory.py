import copy
import io
import math
import pickle
import time

import numpy as np
import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.replay_memory import RaccoonMemory
from tests.benchmarks.raccoon_legacy import PlainMemory


def filled(scores, max_size=10):
    memory = RaccoonMemory(max_size)
    for i, score in enumerate(scores):
        memory.add(torch.tensor([float(i)]), score)
    return memory


def held(memory):
    return sorted(int(t) for t in memory.buffer)


def test_full_memory_drops_the_worst_and_of_equals_the_oldest():
    assert held(filled([0.3, 0.1, 0.5, 0.4, 0.05], max_size=3)) == [0, 2, 3]
    assert held(filled([1.0, 1.0, 1.0], max_size=2)) == [1, 2]


def test_agrees_with_the_plain_rendering_over_a_long_life():
    scores = torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist()
    memory, plain = RaccoonMemory(64), PlainMemory(64)
    for i, score in enumerate(scores):
        memory.add(i, score)
        plain.add(i, score)
        assert len(memory) == len(plain.buffer)
    assert sorted(memory.buffer) == sorted(plain.buffer)
    assert sorted(memory.scores) == sorted(plain.scores)
    assert all(scores[i] == s for i, s in zip(memory.buffer, memory.scores, strict=True))


def test_scores_are_a_list_beside_the_buffer():
    memory = filled([0.2, 0.7])
    assert isinstance(memory.scores, list)
    assert memory.scores == [0.2, 0.7]
    assert memory.max_size == 10


def test_new_group_keeps_its_share_however_unsure_it_is():
    plain, memory = PlainMemory(100), RaccoonMemory(100)
    for i in range(300):
        plain.add(("old", i), 0.9)
        memory.add(("old", i), 0.9, group="old")
    for i in range(50):
        plain.add(("new", i), 0.1)
        memory.add(("new", i), 0.1, group="new")
    assert sum(kind == "new" for kind, _ in plain.buffer) == 0
    assert sum(kind == "new" for kind, _ in memory.buffer) == 50
    for i in range(500):
        memory.add(("newer", i), 0.5, group="newer")
    counts = [sum(kind == k for kind, _ in memory.buffer) for k in ("old", "new", "newer")]
    assert sum(counts) == 100
    assert min(counts) >= 33


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_is_refused_on_entry(bad):
    memory = filled([0.5, 0.6])
    assert memory.add(torch.zeros(1), bad) is False
    memory.update_score(0, bad)
    assert len(memory) == 2
    assert all(math.isfinite(s) for s in memory.scores)
    assert len(memory.sample(2)) == 2
    plain = PlainMemory()
    for score in (0.5, math.nan):
        plain.add(0, score)
    with pytest.raises(ValueError, match=r"NaN|nan"), np.errstate(invalid="ignore"):
        plain.sample(1)


def test_sampling_follows_the_softmax_of_the_scores():
    torch.manual_seed(0)
    scores = [0.0, 1.0, 2.0, -50.0]
    memory = filled(scores)
    draws = torch.tensor([memory.sample_indices(1)[0] for _ in range(8000)])
    frequencies = torch.bincount(draws, minlength=4) / 8000
    assert torch.allclose(frequencies, torch.softmax(torch.tensor(scores), 0), atol=0.02)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distinct_draws_follow_sequential_sampling(n):
    # the first two of a draw without replacement: p_i p_j / (1 - p_i)
    torch.manual_seed(0)
    scores = [0.0, 1.0, 1.5, 0.3]
    memory, p = filled(scores), torch.softmax(torch.tensor(scores), 0)
    counts = torch.zeros(4, 4)
    for _ in range(6000):
        chosen = memory.sample_indices(n)
        assert len(set(chosen)) == n
        counts[chosen[0], chosen[-1]] += 1
    expected = torch.diag(p) if n == 1 else None
    if n == 2:
        expected = (p[:, None] * p[None] / (1 - p[:, None])).fill_diagonal_(0)
    if expected is not None:
        assert torch.allclose(counts / 6000, expected, atol=0.03)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 700.0])
def test_large_and_shifted_scores_draw_as_their_differences_say(offset):
    torch.manual_seed(0)
    memory = filled([offset, offset + 1.0, offset - 900.0])
    draws = torch.tensor([memory.sample_indices(1)[0] for _ in range(3000)])
    assert abs((draws == 1).double().mean() - 1 / (1 + math.exp(-1.0))) < 0.03
    assert (draws != 2).all()
    assert sorted(memory.sample_indices(3)) == [0, 1, 2]


def test_more_than_there_are_is_drawn_with_replacement_only():
    memory = filled([0.1, 0.2])
    assert len(memory.sample(7)) == 7
    assert sorted(int(t) for t in memory.sample(2)) == [0, 1]
    assert memory.sample(0) == []


def test_every_published_call_works():
    memory = filled([0.1, 0.2, 0.3])
    assert len(memory.sample(2, device=torch.device("cpu"))) == 2
    assert len(memory.sample(10, device="cpu")) == 10
    assert len(memory.sample(batch_size=1)) == 1
    with pytest.raises(UsageError, match="once"):
        memory.sample()
    with pytest.raises(UsageError, match="-1"):
        memory.sample(-1)


def test_empty_memory_raises_and_zero_capacity_keeps_nothing():
    memory = RaccoonMemory(0)
    assert memory.add(torch.zeros(1), 1.0) is False
    assert len(memory) == 0
    with pytest.raises(RuntimeError, match="empty"):
        memory.sample(1)
    for size in (-1, 1.5, True):
        with pytest.raises(UsageError):
            RaccoonMemory(size)


def test_kept_row_does_not_keep_its_batch_alive():
    batch = torch.randn(1000, 1000)
    memory, plain = RaccoonMemory(5), PlainMemory(5)
    memory.add((batch[3], batch[4:5]), 1.0)
    plain.add(batch[3], 1.0)
    assert plain.buffer[0].untyped_storage().nbytes() == 4_000_000
    assert [t.untyped_storage().nbytes() for t in memory.buffer[0]] == [4000, 4000]
    assert torch.equal(memory.buffer[0][0], batch[3])
    memory.add(torch.ones(2, requires_grad=True) * 2, 1.0)
    assert memory.buffer[1].grad_fn is None


def test_state_is_a_copy_that_torch_load_takes():
    memory = RaccoonMemory(4)
    memory.add({"z": torch.ones(2), "note": ("a", 1, None)}, 0.5, group=1)
    memory.add([np.float64(2.5), np.arange(3)], np.float32(0.25), group=2)
    state = memory.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    memory.buffer[0]["z"].zero_()
    memory.scores[0] = 9.0
    assert torch.equal(state["buffer"][0]["z"], torch.ones(2))
    assert state["scores"] == [0.5, 0.25]
    other = RaccoonMemory(99)
    other.load_state_dict(loaded)
    assert (other.scores, other.max_size, len(other)) == ([0.5, 0.25], 4, 2)
    loaded["buffer"][0]["z"].zero_()
    assert torch.equal(other.buffer[0]["z"], torch.ones(2))
    for i in range(10):
        other.add(i, 0.1, group=3)
    assert len(other) == 4
    assert {1, 2} <= set(other._groups)


def test_state_refuses_what_a_checkpoint_cannot_carry_and_what_does_not_fit():
    memory = RaccoonMemory(4)
    memory.add(object(), 1.0)
    with pytest.raises(UsageError, match="object"):
        memory.state_dict()
    with pytest.raises(UsageError, match="scores"):
        RaccoonMemory(2).load_state_dict({"buffer": []})
    with pytest.raises(UsageError, match="1 trajectories, 2 scores"):
        RaccoonMemory(2).load_state_dict({"buffer": [1], "scores": [1.0, 2.0]})


def test_published_state_loads_and_its_bad_scores_stay_out():
    memory = RaccoonMemory()
    memory.load_state_dict({"buffer": [torch.zeros(1), torch.ones(1), torch.ones(1)], "scores": [0.1, math.nan, 0.3], "max_size": 2})
    assert (memory.scores, memory.max_size) == ([0.1, 0.3], 2)


def test_score_may_be_any_number_with_or_without_a_graph():
    memory = RaccoonMemory(4)
    for score in (1, 0.5, np.float32(0.25), torch.tensor(0.125), torch.tensor(2.0, requires_grad=True) * 1):
        memory.add(0, score)
    assert sorted(memory.scores) == [0.25, 0.5, 1.0, 2.0]
    assert all(type(score) is float for score in memory.scores)


def test_refreshed_scores_decide_who_goes():
    memory = filled([0.5, 0.6, 0.7], max_size=3)
    memory.update_score(2, 0.01)
    memory.add(torch.tensor([9.0]), 0.4)
    assert held(memory) == [0, 1, 9]
    for _ in range(1000):  # nothing out of date piles up
        memory.update_score(0, 0.9)
    assert [len(ranking) for ranking in memory._rankings.values()] == [3]
    memory.update_score(-1, 0.2)  # as a list's index: the last
    assert memory.scores[2] == 0.2
    memory.add(torch.tensor([10.0]), 0.3)
    assert held(memory) == [0, 1, 10]
    with pytest.raises(IndexError):
        memory.update_score(3, 0.5)


@pytest.mark.parametrize("groups", [[None], [0, 1, 2, 3]])
def test_a_copy_goes_on_as_the_memory_itself_would(groups):
    """By state dict through a file, by pickle and by deepcopy: the same evictions among equals, the same draws, bit for bit."""
    torch.manual_seed(0)
    memory = RaccoonMemory(40)
    coarse = (torch.randint(0, 3, (400,)) / 2).tolist()  # many equals: age decides

    def live(memory, numbers):
        seen = []
        for i in numbers:
            memory.add(i, coarse[i], groups[(i * i) % 7 % len(groups)])
            for slot in memory.sample_indices(4):
                memory.update_score(slot, coarse[(i + slot) % 400])
                seen.append(slot)
        return seen

    live(memory, range(200))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored = RaccoonMemory(1)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.state_dict() == memory.state_dict()
    ageless = RaccoonMemory(1)
    ageless.load_state_dict({key: value for key, value in memory.state_dict().items() if key != "ages"})
    ages = memory.state_dict()["ages"]
    assert sorted(ages) == list(range(40))
    copies = [restored, copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    generator = torch.get_rng_state()
    expected = live(memory, range(200, 400))
    for other in copies:
        torch.set_rng_state(generator)
        assert live(other, range(200, 400)) == expected
        assert other.state_dict() == memory.state_dict()
    torch.set_rng_state(generator)
    live(ageless, range(200, 400))
    assert ageless.buffer != memory.buffer  # without ages the oldest of equals is another


def test_order_of_age_is_saved_only_where_it_is_not_that_of_the_slots():
    memory = filled([0.2, 0.1, 0.3], max_size=3)
    assert set(memory.state_dict()) == {"buffer", "scores", "max_size"}
    memory.add(torch.tensor([9.0]), 0.5)
    assert memory.state_dict()["ages"] == [0, 2, 1]


def test_of_groups_of_one_size_the_one_with_the_lowest_score_gives_way():
    memory = RaccoonMemory(4)
    for name, score, group in (("a", 0.5, 0), ("b", 0.4, 1), ("c", 0.6, 0), ("d", 0.7, 1)):
        memory.add(name, score, group)
    memory.add("e", 0.1, 2)
    assert sorted(memory.buffer) == ["a", "c", "d", "e"]


def test_a_whole_tensor_is_kept_as_it_is():
    memory, whole = RaccoonMemory(5), torch.ones(3)
    memory.add(whole, 1.0)
    memory.add((whole, 1), 1.0)
    assert memory.buffer[0] is whole
    assert memory.buffer[1][0] is whole
    memory.add(torch.nn.Parameter(torch.ones(2)), 1.0)
    assert not memory.buffer[2].requires_grad
    memory.add(torch.ones(2, 2).to_sparse(), 1.0)
    assert memory.buffer[3].is_sparse


def test_lists_that_somebody_cleared_cut_or_replaced_are_followed():
    memory = filled([0.1, 0.2, 0.3, 0.4, 0.5])
    memory.buffer.clear()
    memory.scores.clear()
    with pytest.raises(RuntimeError, match="empty"):
        memory.sample(1)
    memory.add(torch.tensor([7.0]), 0.1)
    assert [int(t) for t in memory.sample(1)] == [7]
    memory = filled([0.1, 0.2, 0.3, 0.4, 0.5])
    memory.buffer, memory.scores = memory.buffer[:2], [0.9, math.nan]
    assert {int(t) for t in memory.sample(20)} == {0}
    memory.add(torch.tensor([8.0]), 0.7)
    assert held(memory) == [0, 8]
    buffer, scores = [torch.tensor([3.0])], [0.5]
    memory.buffer, memory.scores = buffer, scores
    memory.add(torch.tensor([4.0]), 0.6)
    assert ([int(t) for t in buffer], scores) == ([3, 4], [0.5, 0.6])  # whoever gave the lists goes on seeing what is remembered
    assert memory.buffer is buffer
    memory.scores.pop()
    with pytest.raises(UsageError, match="2 trajectories and scores 1"):
        memory.add(0, 0.5)


def test_copies_are_independent():
    memory = filled([0.5, 0.6])
    other = copy.deepcopy(memory)
    other.add(torch.zeros(1), 0.7)
    assert (len(memory), len(other)) == (2, 3)


def test_legacy_memory_is_the_published_one():
    np.random.seed(0)
    legacy, plain = RaccoonMemory(5, legacy_compat=True), PlainMemory(5)
    for i, score in enumerate([0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.05]):
        legacy.add(i, score)
        plain.add(i, score)
    assert (legacy.buffer, legacy.scores) == (plain.buffer, plain.scores)
    state = np.random.get_state()
    first = legacy.sample(3)
    np.random.set_state(state)
    assert first == plain.sample(3)
    assert legacy.state_dict()["scores"] is legacy.scores


def test_add_and_sample_grow_no_faster_than_the_logarithm():
    def operations(size):
        memory = RaccoonMemory(size)
        for score in torch.rand(size, generator=torch.Generator().manual_seed(0)).tolist():
            memory.add(0, score)
        best = math.inf
        for _ in range(5):
            start = time.process_time()
            for _ in range(200):
                memory.add(0, 0.5)
                memory.sample(16)
            best = min(best, time.process_time() - start)
        return best

    # thirty-two times as many: a linear search would take up to thirty-two times as long, the logarithm grows by 1.46
    assert operations(64_000) < 4 * operations(2000)
