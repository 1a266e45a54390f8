"""One decision on all processes that train one model: skip, clip and put back together, or not at all.

Where the decisions are equal anyway nothing would have to be said: after the all-reduce of DistributedDataParallel every process holds the same
gradients, and a NaN of one is a NaN of all. What they cannot know of each other is the norm over shards (`fully_shard`), and what befell one of
them alone between the reduction and the step, or in the update.

So there is one exchange of a few numbers for each backward pass whose gradients were reduced, which every process has to take part in or
none gets through it. A process gives its word when its optimizer steps; one that does not step (the script decided so) gives it on its way
into the next pass: as many words as reductions on every process, whatever a script does in between, so none waits for one that will not come.
"""

from __future__ import annotations

import functools
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from instrument.distributed.channel import LEAVING, PATIENCE, Channel
from instrument.distributed.shards import Ranks, carries_data, copies, is_sharded, local_part, mesh_ranks, weighted_norm
from instrument.interception import Replacement, replace_attribute, restore
from instrument.runtime import RUNTIME, without_function_modes
from latent_drift.numerics.gradients import global_norm

if TYPE_CHECKING:
    from instrument.run import Run

Function = Callable[..., Any]

is_compiling = torch.compiler.is_compiling

Marks = list[tuple[int, int]]
"""Identity and version of each gradient: what changes when a backward pass writes it."""

Watched = dict[Optimizer, tuple[Channel, Marks]]
"""The optimizers of shards, with the line to those who hold the others, and their gradients before a pass."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all processes know of one step.

    `norm` is of all gradients, not finite if those of any process are not. `bad` are the ranks whose own gradients are not, `suspects` those
    that know of something bad in their own forward pass. `complete`: all of them are stepping. `uneven`: copies that should be equal are not.
    """

    norm: float
    bad: Ranks
    suspects: Ranks
    risky: bool
    complete: bool
    uneven: bool


@dataclass(frozen=True, slots=True)
class _Owed:
    """A word that is expected of this process: for this optimizer, on this line."""

    channel: Channel
    sharded: bool


def is_at_work() -> bool:
    """Whether there are several processes that could have something to agree on."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Agreement:
    """Who owes a word, and what was agreed. One for the process, while any block is open."""

    def __init__(self) -> None:
        self._channels: dict[Ranks, Channel] = {}
        self._model_channels: WeakKeyDictionary[DistributedDataParallel, Channel | None] = WeakKeyDictionary()
        self._reached: WeakSet[DistributedDataParallel] = WeakSet()
        self._order: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._met = 0
        self._shards: WeakKeyDictionary[Optimizer, Channel | None] = WeakKeyDictionary()
        self._trains: WeakKeyDictionary[DistributedDataParallel, WeakKeyDictionary[Optimizer, bool]] = WeakKeyDictionary()
        self._owed: dict[int, tuple[weakref.ref[Optimizer], _Owed]] = {}
        self._standing: WeakKeyDictionary[Optimizer, tuple[_Owed, Verdict]] = WeakKeyDictionary()
        self._replacements: list[Replacement] = []

    # On the way through a pass ------------------------------------------------------------------------------------------

    def forward_of(self, model: DistributedDataParallel, output: Any) -> None:
        """A forward pass of a replicated model has run; if its backward will reduce gradients, be there when it passes."""
        if not (torch.is_grad_enabled() and model.require_backward_grad_sync) or model._join_config.enable:
            return  # with join(), a process that has run out of data takes part in reductions without a backward pass of its own
        channel = self._channel_of(model)
        if channel is None:
            return
        channel.announce()
        reached, reference = self._reached, weakref.ref(model)

        def note(gradient: Tensor) -> None:
            passed = reference()
            if passed is not None:
                reached.add(passed)

        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(note)

    def before_backward(self, run: Run) -> Watched:
        """Give what is owed from the pass before; returns the sharded gradients as they are, to compare with."""
        self.answer_owed()
        self._reached.clear()
        watched = {}
        for optimizer in list(run.optimizers):
            channel = self._shard_channel(optimizer)
            if channel is not None:
                channel.announce()
                watched[optimizer] = (channel, _marks(optimizer))
        if watched:
            self._watch_shards()
        return watched

    def after_backward(self, run: Run, watched: Watched) -> None:
        """Where gradients were reduced, all processes are here: from now on each owes a word for each optimizer of that model."""
        replicated = list(self._reached)
        self._reached.clear()
        for model in replicated:
            channel = self._model_channels.get(model)
            if channel is not None:
                channel.open_if_all_announced()
                if channel.is_open:
                    for optimizer in self._optimizers_of(model, run):
                        self._owe(optimizer, _Owed(channel, sharded=False))
        for optimizer in self._in_order([optimizer for optimizer, (_, marks) in watched.items() if marks != _marks(optimizer)]):
            channel = watched[optimizer][0]
            channel.open_if_all_announced()
            if channel.is_open:
                self._owe(optimizer, _Owed(channel, sharded=True))

    def answer_owed(self, patience: float = PATIENCE) -> None:
        """Tell the others that no step was made for the last reduction."""
        if not self._owed:
            return
        pending, self._owed = sorted(self._owed.items()), {}
        for number, (_, owed) in pending:
            owed.channel.exchange((float(number), 0.0, 0.0, 0.0, 0.0, 0.0), patience)

    def open(self) -> None:
        """The first block opens."""
        self._replacements.append(replace_attribute(DistributedDataParallel, "forward", _forward(DistributedDataParallel.forward)))

    def close(self) -> None:
        """The last block closes: nobody who is still waiting is left without a word, and nothing is remembered."""
        self.answer_owed(LEAVING)
        restore(self._replacements)
        self.__init__()  # type: ignore[misc]

    def _watch_shards(self) -> None:
        """Shards are gathered at the start of a forward pass: what is owed is given before that. What `fully_shard` does with its buffers (they
        are empty, or hold anything, before they are filled) is no business of the watching mode."""
        module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param_group")
        if module is not None and len(self._replacements) == 1:
            owner = module.FSDPParamGroup
            for name in ("unshard", "wait_for_unshard", "post_backward", "finalize_backward"):
                if hasattr(owner, name):
                    self._replacements.append(replace_attribute(owner, name, _unwatched(getattr(owner, name))))

    # On a step ----------------------------------------------------------------------------------------------------------

    def concerns(self, optimizer: Optimizer) -> bool:
        """Whether anything is, or may be, to be agreed for this optimizer now."""
        return bool(self._owed or self._standing) and optimizer in self._order

    def judge(self, optimizer: Optimizer, gradients: Sequence[Tensor], scale: float, norm: float, *, suspect: bool, risky: bool) -> Verdict | None:
        """What all processes make of this step's gradients; None where there is nothing to agree on, or nobody to agree with.

        Args:
            gradients: this process's, DTensors as such.
            scale: the factor that they carry.
            norm: their norm here, without the factor.
            suspect: whether this process knows of something bad in its own forward pass.
            risky: whether the update needs a look.
        """
        number = self._order.get(optimizer, -1)
        owed = self._owed.pop(number, (None, None))[1]
        if owed is None:
            standing = self._standing.get(optimizer)
            if standing is None:
                return None
            owed = standing[0]
        share = norm
        if owed.sharded and math.isfinite(norm):
            share = weighted_norm(gradients, len(owed.channel.ranks)) / scale
        words = owed.channel.exchange((float(number), 1.0, share, float(not math.isfinite(norm)), float(suspect), float(risky)))
        if words is None:
            self._standing.pop(optimizer, None)
            return None
        verdict = _verdict(owed, words, norm)
        if verdict.complete:
            self._standing[optimizer] = (owed, verdict)
        return verdict

    def spoilt_anywhere(self, optimizer: Optimizer, spoilt: bool) -> bool:
        """Whether the update spoilt a parameter on any of the processes, of which this one says `spoilt`."""
        number = self._order.get(optimizer, -1)
        owed = self._owed.pop(number, (None, None))[1]
        if owed is None:
            standing = self._standing.get(optimizer)
            if standing is None or not standing[1].risky:
                return spoilt
            owed = standing[0]
        words = owed.channel.exchange((float(number), 1.0, 0.0, float(spoilt), 0.0, 1.0))
        return spoilt if words is None else any(word[1] and word[3] for word in words)

    def norm_of_order(self, optimizer: Optimizer, gradients: Sequence[Tensor], order: float) -> float | None:
        """The p-norm over all shards, p = `order`; None where this process holds the whole gradients."""
        standing = self._standing.get(optimizer)
        if standing is None or not standing[0].sharded:
            return None
        owed = standing[0]
        parts = [(global_norm([local_part(g)], order), copies(g) if is_sharded(g) else len(owed.channel.ranks)) for g in gradients]
        largest = max((norm for norm, _ in parts), default=0.0)
        share = 0.0 if largest == 0.0 or math.isinf(order) else sum((norm / largest) ** order / count for norm, count in parts)
        words = owed.channel.exchange((largest, share))
        if words is None:
            return None
        top = max(word[0] for word in words)
        if top == 0.0 or math.isinf(order):
            return top
        return float(top * math.fsum(word[1] * (word[0] / top) ** order for word in words) ** (1.0 / order))

    def step_finished(self, optimizer: Optimizer, *, failed: bool) -> bool:
        """What was agreed for this step is over; returns whether it counts as failed, here as everywhere: rollbacks follow from that."""
        standing = self._standing.pop(optimizer, None) if self._standing else None
        if standing is None:
            return failed
        return bool(failed or standing[1].bad or standing[1].suspects)

    # Who is who ---------------------------------------------------------------------------------------------------------

    def _channel(self, ranks: Ranks) -> Channel:
        if ranks not in self._channels:
            self._channels[ranks] = Channel(ranks)
        return self._channels[ranks]

    def _channel_of(self, model: DistributedDataParallel) -> Channel | None:
        if model not in self._model_channels:
            group = model.process_group
            ranks = tuple(sorted(dist.get_process_group_ranks(group)))
            self._model_channels[model] = self._channel(ranks) if len(ranks) > 1 and carries_data(group) else None
        return self._model_channels[model]

    def _shard_channel(self, optimizer: Optimizer) -> Channel | None:
        if optimizer not in self._shards:
            ranks = mesh_ranks(_parameters(optimizer))
            self._shards[optimizer] = self._channel(ranks) if ranks is not None and dist.get_rank() in ranks else None
        return self._shards[optimizer]

    def _optimizers_of(self, model: DistributedDataParallel, run: Run) -> list[Optimizer]:
        trains = self._trains.setdefault(model, WeakKeyDictionary())
        for optimizer in list(run.optimizers):
            if optimizer not in trains:
                own = {id(p) for p in model.module.parameters()}
                trains[optimizer] = any(id(p) in own for p in _parameters(optimizer))
        return self._in_order([o for o in list(run.optimizers) if trains[o]])

    def _in_order(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """The same order on all processes: that in which their gradients were first reduced, and of their shapes where several are met at once.
        (Not of all optimizers that are about: garbage that one process has collected and another has not would count.)"""
        for optimizer in sorted((o for o in optimizers if o not in self._order), key=_signature):
            self._order[optimizer] = self._met
            self._met += 1
        return sorted(optimizers, key=self._order.__getitem__)

    def _owe(self, optimizer: Optimizer, owed: _Owed) -> None:
        self._owed[self._order[optimizer]] = (weakref.ref(optimizer), owed)


def _verdict(owed: _Owed, words: Sequence[tuple[float, ...]], norm: float) -> Verdict:
    """All processes have the same words, so they come to the same verdict."""
    here = words[owed.channel.place]
    stepping = [(rank, word) for rank, word in zip(owed.channel.ranks, words, strict=True) if word[1] and word[0] == here[0]]
    bad = tuple(rank for rank, word in stepping if word[3])
    complete = len(stepping) == len(words)
    if bad:
        norm = math.nan
    elif not owed.sharded:
        norm = max(word[2] for _, word in stepping)
    elif complete:
        norm = math.hypot(*(word[2] for _, word in stepping))
    return Verdict(
        norm=norm,
        bad=bad,
        suspects=tuple(rank for rank, word in stepping if word[4]),
        risky=any(word[5] for _, word in stepping),
        complete=complete,
        uneven=not owed.sharded and 0 < len(bad) < len(stepping),
    )


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _signature(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__name__} {[tuple(p.shape) for p in _parameters(optimizer)]}"


def _marks(optimizer: Optimizer) -> Marks:
    return [(id(p.grad), p.grad._version) for p in _parameters(optimizer) if p.grad is not None and is_sharded(p)]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a model's output, however it is nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


AGREEMENT = Agreement()


def _forward(original: Function) -> Function:
    @functools.wraps(original)
    def forward(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not RUNTIME.active or not RUNTIME.run.policy.act:
            return original(self, *args, **kwargs)
        AGREEMENT.answer_owed()
        output = original(self, *args, **kwargs)
        AGREEMENT.forward_of(self, output)
        return output

    return forward


def _unwatched(original: Function) -> Function:
    @functools.wraps(original)
    def unwatched(*args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not RUNTIME.active:
            return original(*args, **kwargs)
        AGREEMENT.answer_owed()
        if not RUNTIME.run.search.watch.is_on:
            return original(*args, **kwargs)
        with without_function_modes():
            return original(*args, **kwargs)

    return unwatched
