"""A bounded memory of trajectories: keeps those with the best scores, and samples by softmax of the scores."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Hashable, Sequence
from typing import Any, Final, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.models.ranking import Ranking
from latent_drift.models.sampling_tree import SamplingTree
from latent_drift.models.sizes import require_size

_LOG = logging.getLogger(__name__)

_REJECTION_LIMIT: Final = 8  # draws allowed for each item asked for before the exact O(n) way is cheaper
_SLOT_BITS: Final = 32  # a ticket of the ranking is the entry's age and, in its low bits, its slot


class RaccoonMemory:
    """At most `max_size` trajectories with a score each.

    A full memory that is given one more drops the one with the lowest score (the oldest of equals), the new one included. With
    groups (class labels, say) it drops the lowest of the largest group, so that no group can displace another below its share.

    Args:
        max_size: capacity; 0 keeps nothing.
        legacy_compat: as published: lists in order of arrival searched linearly, non-finite scores and views taken as they come,
            numpy's global generator, and a state that aliases the live lists.

    Attributes:
        buffer: the trajectories, in no particular order.
        scores: their scores, a list of finite floats beside `buffer`; change one with `update_score`. Both lists may be
            cleared, cut to the same length or replaced.
        max_size: the capacity.

    Raises:
        UsageError: `max_size` is negative or no integer.

    *Numerics*: `add` and `sample` grow with log(len). A score that is not finite is refused: one NaN would make every probability NaN.
    Tensors that are views of something larger are copied, so that a kept row does not keep its batch alive.
    """

    def __init__(self, max_size: int = 10000, *, legacy_compat: bool = False) -> None:
        self.max_size = require_size(max_size, "max_size", "RaccoonMemory", at_least=0)
        self.legacy_compat = legacy_compat
        self._clear()

    def _clear(self) -> None:
        self.buffer: list[Any] = []
        self.scores: list[float] = []
        self._groups: list[Hashable] = []
        self._tickets: list[int] = []
        self._rankings: dict[Hashable, Ranking] = {}
        self._clock = 0
        self._tree = SamplingTree()
        self._lists = (self.buffer, self.scores)  # what rankings and tree were built from

    def __len__(self) -> int:
        return len(self.buffer)

    def __repr__(self) -> str:
        return f"RaccoonMemory(max_size={self.max_size}, len={len(self)})"

    def add(self, trajectory: Any, score: SupportsFloat, group: Hashable = None) -> bool:
        """Store a trajectory (a tensor, number, string, or tuple, list or dict of them); returns whether it was kept."""
        if self.legacy_compat:
            return self._legacy_add(trajectory, score)
        value = score if type(score) is float else _number(score)
        self._follow_lists()
        if not math.isfinite(value):
            _LOG.warning("RaccoonMemory: a trajectory with score %s was not stored; scores must be finite", value)
            return False
        size = len(self.buffer)
        if size < self.max_size:
            self._append(trajectory, value, group)
            return True
        if size == 0:
            return False
        rankings = self._rankings
        victims = group if len(rankings) == 1 and group in rankings else self._largest_group(group)
        ranking = rankings[victims]
        if victims == group and value < ranking.lowest_score:
            return False
        slot = ranking.pop() & ((1 << _SLOT_BITS) - 1)
        if not ranking:
            del rankings[victims]
        self.buffer[slot] = _owned(trajectory)
        self.scores[slot] = value
        self._groups[slot] = group
        self._rank(slot, value, group)
        self._tree.set_score(slot, value)
        return True

    def update_score(self, index: int, score: SupportsFloat) -> None:
        """Give the trajectory at `index` of `buffer` a new score; one that is not finite is ignored."""
        value = _number(score)
        if not math.isfinite(value):
            return
        if self.legacy_compat:
            self.scores[index] = value
            return
        self._follow_lists()
        slot = range(len(self.buffer))[index]
        self.scores[slot] = value
        self._rankings[self._groups[slot]].remove(self._tree.score_of(slot), self._tickets[slot])
        self._rank(slot, value, self._groups[slot])
        self._tree.set_score(slot, value)

    def sample(self, n: int | None = None, device: torch.device | str | None = None, *, batch_size: int | None = None) -> list[Any]:
        """`n` (or `batch_size`) trajectories on `device`, drawn with probability softmax(scores).

        Without replacement, unless more are asked for than there are.

        Raises:
            RuntimeError: the memory is empty.
            UsageError: neither or both numbers are given, or a negative one.
        """
        chosen = self.sample_indices(n, batch_size=batch_size)
        return [_moved(self.buffer[i], device) for i in chosen]

    def sample_indices(self, n: int | None = None, *, batch_size: int | None = None) -> list[int]:
        """As `sample`, but positions in `buffer`."""
        if (n is None) == (batch_size is None):
            raise UsageError("RaccoonMemory.sample: give the number of trajectories once, as n or as batch_size")
        count = batch_size if n is None else n
        assert count is not None
        if not self.legacy_compat:
            self._follow_lists()
        if count < 0:
            raise UsageError(f"RaccoonMemory.sample: cannot draw {count} trajectories")
        size = len(self.buffer)
        if size == 0:
            raise RuntimeError("RaccoonMemory.sample: the memory is empty; add trajectories first")
        if self.legacy_compat:
            return self._legacy_indices(count)
        if count > size:
            return self._tree.draw(torch.rand(count, dtype=torch.float64).tolist())
        return self._distinct(count)

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, in tensors, numbers, strings, lists, tuples and dicts: what `torch.load(weights_only=True)` takes.

        Raises:
            UsageError: a stored trajectory is made of something else.
        """
        if self.legacy_compat:
            return {"buffer": self.buffer, "scores": self.scores, "max_size": self.max_size}
        state = {"buffer": [_plain(t) for t in self.buffer], "scores": list(self.scores), "max_size": self.max_size}
        if any(group is not None for group in self._groups):
            state["groups"] = [_plain(group) for group in self._groups]
        by_age = sorted(range(len(self._tickets)), key=self._tickets.__getitem__)
        if by_age != list(range(len(by_age))):  # of equal scores the oldest goes first, after a restart too
            ages = [0] * len(by_age)
            for age, slot in enumerate(by_age):
                ages[slot] = age
            state["ages"] = ages
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace everything by a copy of a saved state; of one that is too large the best remain.

        Raises:
            UsageError: keys are missing, or buffer and scores differ in length.
        """
        missing = [key for key in ("buffer", "scores") if key not in state]
        if missing:
            raise UsageError(f"RaccoonMemory.load_state_dict: expected the keys buffer, scores and max_size; missing {', '.join(missing)}")
        buffer, scores = list(state["buffer"]), [float(s) for s in state["scores"]]
        groups = list(state.get("groups", [None] * len(buffer)))
        if not len(buffer) == len(scores) == len(groups):
            raise UsageError(
                f"RaccoonMemory.load_state_dict: {len(buffer)} trajectories, {len(scores)} scores, {len(groups)} groups; expected as many of each"
            )
        self.max_size = require_size(state.get("max_size", self.max_size), "max_size", "RaccoonMemory.load_state_dict", at_least=0)
        self._clear()
        if self.legacy_compat:
            self.buffer, self.scores = buffer, scores
            return
        for trajectory, score, group in zip(buffer, scores, groups, strict=True):
            self.add(copy.deepcopy(trajectory), score, group)
        if "ages" in state and len(self.buffer) == len(buffer):
            self._rank_all(state["ages"])

    def _follow_lists(self) -> None:
        """Start again from `buffer` and `scores` where somebody cleared, cut or replaced them."""
        buffer, scores = self.buffer, self.scores
        if buffer is self._lists[0] and scores is self._lists[1] and len(buffer) == len(scores) == len(self._tickets):
            return
        if len(buffer) != len(scores):
            raise UsageError(f"RaccoonMemory: buffer holds {len(buffer)} trajectories and scores {len(scores)} numbers; expected as many of each")
        groups = self._groups if len(self._groups) == len(buffer) else [None] * len(buffer)
        self._clear()
        for trajectory, score, group in zip(buffer, scores, groups, strict=True):
            self.add(trajectory, score, group)
        if isinstance(buffer, list) and isinstance(scores, list):  # whoever holds the lists goes on seeing what is remembered
            buffer[:], scores[:] = self.buffer, self.scores
            self.buffer, self.scores = self._lists = buffer, scores

    def _append(self, trajectory: Any, score: float, group: Hashable) -> None:
        self.buffer.append(_owned(trajectory))
        self.scores.append(score)
        self._groups.append(group)
        self._tickets.append(0)
        self._tree.append(score)
        self._rank(len(self.buffer) - 1, score, group)

    def _rank(self, slot: int, score: float, group: Hashable) -> None:
        self._clock += 1
        ticket = self._tickets[slot] = self._clock << _SLOT_BITS | slot
        ranking = self._rankings.get(group)
        if ranking is None:
            ranking = self._rankings[group] = Ranking()
        ranking.add(score, ticket)

    def _rank_all(self, ages: Sequence[int]) -> None:
        """Rank everything as if it had come in the order of `ages`."""
        self._rankings, self._clock = {}, 0
        for slot in sorted(range(len(ages)), key=ages.__getitem__):
            self._rank(slot, self._tree.score_of(slot), self._groups[slot])

    def _largest_group(self, newcomer: Hashable) -> Hashable:
        """The newcomer's group if none is larger: it competes with its own kind. Of other groups of one size the one with the lowest score."""
        sizes = {group: len(ranking) for group, ranking in self._rankings.items()}
        largest = max(sizes.values())
        if sizes.get(newcomer, 0) == largest:
            return newcomer
        return min((group for group, size in sizes.items() if size == largest), key=lambda group: self._rankings[group].lowest)

    def _distinct(self, count: int) -> list[int]:
        """`count` different slots, one after the other, each with its probability among those that are left."""
        chosen: dict[int, None] = {}
        if 2 * count <= len(self.buffer):
            for _ in range(_REJECTION_LIMIT):
                # Rejecting what was drawn before is drawing from the rest: the same law as removing it from the tree.
                for slot in self._tree.draw(torch.rand(count, dtype=torch.float64).tolist()):
                    chosen[slot] = None
                    if len(chosen) == count:
                        return list(chosen)
        # Few left, or a few scores far above all others: the Gumbel top-k draw from what remains, in one pass.
        left = np.array([i for i in range(len(self.buffer)) if i not in chosen])
        gumbel = -np.log(-np.log1p(-torch.rand(len(left), dtype=torch.float64).numpy()))
        order = np.argsort(-(np.array(self.scores)[left] + gumbel), kind="stable")[: count - len(chosen)]
        return [*chosen, *left[order].tolist()]

    def _legacy_add(self, trajectory: Any, score: SupportsFloat) -> bool:
        self.buffer.append(trajectory)
        self.scores.append(_number(score))
        if len(self.buffer) > self.max_size:
            worst = int(np.argmin(self.scores))
            del self.buffer[worst], self.scores[worst]
            return worst != len(self.buffer)
        return True

    def _legacy_indices(self, count: int) -> list[int]:
        scores = np.array(self.scores)
        weights = np.exp(scores - scores.max())
        probabilities = weights / weights.sum() + 1e-10
        probabilities = probabilities / probabilities.sum()
        drawn = np.random.choice(len(self.buffer), size=count, replace=count > len(self.buffer), p=probabilities)
        return [int(i) for i in drawn]


def _number(score: SupportsFloat) -> float:
    return float(score.detach() if isinstance(score, Tensor) else score)


def _owned(value: Any) -> Any:
    """`value` without autograd history, its tensors copied where they are views of a larger storage."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            value = value.detach()
        if value.layout is torch.strided and value.untyped_storage().nbytes() > value.nbytes:
            return value.clone()
        return value
    if type(value) is tuple or type(value) is list:
        return type(value)([_owned(v) for v in value])
    if isinstance(value, dict):
        return {key: _owned(v) for key, v in value.items()}
    return value


def _moved(value: Any, device: torch.device | str | None) -> Any:
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)([_moved(v, device) for v in value])
    if isinstance(value, dict):
        return {key: _moved(v, device) for key, v in value.items()}
    return value


def _plain(value: Any) -> Any:
    """A deep copy of `value` in what `torch.load(weights_only=True)` takes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(v) for key, v in value.items()}
    raise UsageError(
        f"RaccoonMemory.state_dict: a trajectory holds a {type(value).__name__}, which a checkpoint cannot carry; store tensors, numbers, "
        "strings, or tuples, lists and dicts of them"
    )
