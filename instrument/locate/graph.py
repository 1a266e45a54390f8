"""The autograd graph behind a loss that is not finite, read while it is alive: which node made the first bad number.

A graph knows the tensors that its nodes saved for backward, so for most values it can be said whether they were finite; of the rest (a sum
saves nothing) it is known what they were made of. It does not know lines. The script runs the same operations in the next step, so there
the place of the same node is met again, and that step's operations are being watched: `Suspect.place_in` lays the two graphs side by side.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from instrument.events import Site
from instrument.guards.parameter_names import parameter_names
from instrument.locate.came_in import CameIn, came_in, is_masked_only, still_graphed
from instrument.locate.node_names import MOVES, TRANSPARENT
from instrument.locate.node_values import asked_again, largest_possible
from instrument.locate.origin import bad_data, feeding_parameters, kinds, spread
from instrument.runtime import RUNTIME, without_function_modes
from instrument.tensors import is_bad, is_there
from latent_drift.numerics.finite import largest_magnitude, summarise

Place = tuple[Site, str | None]
"""A line, and the path of the module that it ran in."""

MOST_NODES = 200_000
MOST_COMPARED = 4_000  # the comparison of two unequal lists takes the product of their lengths in the worst case

_OWN_RESULTS = ("result", "output", "out", "logsumexp", "log_sumexp", "inverse", "L", "U", "S", "Q", "R", "LU", "eigen")
_CANNOT_MAKE_NAN = ("Add", "Sub", "Sum", "Mean")  # of finite numbers: they overflow to Inf first


_MASKS = ("MaskedFill", "Where", "MaskedScatter", "IndexFill")


def nodes_behind(roots: Iterable[Any]) -> list[Any]:
    """The operations of a graph in the order in which they ran."""
    pending = [root.grad_fn for root in roots if isinstance(root, Tensor) and root.grad_fn is not None]
    seen: set[Any] = set(pending)
    while pending and len(seen) < MOST_NODES:
        for following, _ in pending.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return sorted((node for node in seen if not _is_leaf(node)), key=lambda node: node._sequence_nr())


def _is_leaf(node: Any) -> bool:
    return isinstance(getattr(node, "variable", None), Tensor)


def _saved(node: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a node saved, as far as they lie there as they are: what a hook packed away (a checkpoint, offloading) is not unpacked,
    since that would run the script's code."""
    for attribute in dir(node):
        if not attribute.startswith("_raw_saved_"):
            continue
        try:
            raw = getattr(node, attribute)
        except RuntimeError:
            continue  # freed
        for index, item in enumerate(raw if isinstance(raw, list | tuple) else (raw,)):
            try:
                if not isinstance(item.data, Tensor):
                    continue
                name = attribute.removeprefix("_raw_saved_")
                value = node.saved_tensors[index] if name == "tensors" else getattr(node, "_saved_" + name)
                value = value[index] if isinstance(value, list | tuple) else value
            except (RuntimeError, AttributeError, IndexError):
                continue  # written over since
            if isinstance(value, Tensor):
                yield name, value


@dataclass(frozen=True, slots=True)
class Suspect:
    """The node that made the first bad number, or that met it first where it came in."""

    code: str
    op: str
    message: str
    step: int
    index: int
    names: tuple[str, ...]
    """Of all the graph's nodes in the order in which they ran; `index` counts in it."""
    facts: dict[str, Any] = field(default_factory=dict)
    argument: str | None = None
    """What the node calls the data that came in bad."""
    site: Site | None = None
    """Where it came in, if that is known already."""
    made_at: Site | None = None
    """The statement that had made bad data bad."""
    fed_by: tuple[torch.Size, ...] = ()
    """The shapes of the parameters nearest to the node: two models that train in turn begin with the same operations. A script that makes its
    parameters anew at each step keeps their shapes."""

    def place_in(
        self, nodes: Sequence[Any], places: Mapping[Any, Place], entered_at: Callable[[Tensor], Place | None], since: int = 0
    ) -> Place | None:
        """The line of the same node in the graph of another step, whose nodes' lines are known; None if that step went another way.

        Args:
            nodes: the other graph's operations in the order in which they ran.
            places: the lines at which nodes were made, with the module's path. A composite operation is known by its last node.
            entered_at: for data that was computed from bad data in that step, the line at which that entered.
            since: the sequence number of autograd's nodes from which lines are known: the watching may have begun in the middle of a graph.
        """
        names, index = _comparable(self.names, self.index)
        others = [i for i, node in enumerate(nodes) if not _is_ours(node.name())]
        other_names = [nodes[i].name() for i in others]
        position = _counterpart(names, index, other_names)
        if position is None:
            return None
        node = nodes[others[position]]
        if node._sequence_nr() < since or self.fed_by != _shapes_feeding(node):
            return None
        if self.argument is not None:
            values = (value for name, value in _saved(nodes[others[position]]) if name == self.argument)
            entered = next((place for place in map(entered_at, values) if place is not None), None)
            if entered is not None:
                return entered
        following = (places.get(node) for node in nodes[others[position] :])
        return next((place for place in following if place is not None), None)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same node of the same program."""
        return self.op, self.index, self.names


def _is_ours(name: str) -> bool:
    return name.startswith(("_FilterB", "_ResultB", "_BoundedB", "StraightThroughBoundB"))


def _comparable(names: Sequence[str], index: int) -> tuple[list[str], int]:
    """Without the nodes that guards add where there was something to guard."""
    kept = [i for i, name in enumerate(names) if i == index or not _is_ours(name)]
    return [names[i] for i in kept], kept.index(index)


def _counterpart(names: list[str], index: int, others: list[str]) -> int | None:
    """Where the operation at `index` of one list is in another."""
    before = index + 1
    if names[:before] == others[:before]:
        return index
    after = len(names) - index
    if len(others) >= after and names[index:] == others[-after:]:
        return len(others) - after
    if len(names) + len(others) > MOST_COMPARED:
        return None
    for block in difflib.SequenceMatcher(None, names, others, autojunk=False).get_matching_blocks():
        if block.a <= index < block.a + block.size:
            return block.b + index - block.a
    return None


MOST_GRAPHS = 8
"""Graphs that are followed from one to the next where a script detaches."""


def suspect_behind(roots: Sequence[Any], step: int, graphs: int = MOST_GRAPHS) -> Suspect | None:
    """Who made the first bad number of these (a loss, or what goes into one), as far as the graph that is alive can tell."""
    with torch.no_grad(), without_function_modes():
        nodes = nodes_behind(roots)
        return _Reading(nodes, roots, graphs).suspect(step) if nodes else None


class _Reading:
    """One look at a graph: what is known to be finite, what is not, and what came in from outside of it."""

    def __init__(self, nodes: list[Any], roots: Sequence[Any], graphs: int) -> None:
        self._nodes = nodes
        self._graphs = graphs
        self._position = {node: i for i, node in enumerate(nodes)}
        self._is_bad: dict[Any, bool] = {}
        self._bad_values: dict[Any, Tensor] = {}
        self._good_values: dict[Any, Tensor] = {}
        self._largest: dict[Any, float] = {}
        self._limit = 1e37
        self._came_in: dict[Any, list[Tensor]] = {}
        self._argument: dict[int, str] = {}
        self._inputs: dict[Any, list[Tensor]] = {}
        self._told: dict[int, tuple[Tensor, CameIn]] = {}  # the tensors with it, so that ids stay theirs
        for root in roots:
            if isinstance(root, Tensor) and root.grad_fn is not None:
                self._judge(root.grad_fn, root)
        looked_at: dict[int, tuple[Tensor, bool]] = {}  # the tensors with it: a graph gives new objects, and the id of one that is gone returns

        def look(x: Tensor) -> bool:
            if id(x) not in looked_at:
                looked_at[id(x)] = x, is_bad(x)
            return looked_at[id(x)][1]

        for node in nodes:
            for name, value in _saved(node):
                bad = look(value)
                self._limit = 6e4 if value.dtype is torch.float16 else self._limit
                maker = value.grad_fn
                if maker is None and name.startswith(_OWN_RESULTS) and not value.requires_grad:
                    maker = node
                if maker is not None:
                    self._judge(maker, value, bad)
                elif bad:
                    self._came_in.setdefault(node, []).append(value)
                    self._argument[id(value)] = name
                if maker is not node and is_there(value):
                    self._inputs.setdefault(node, []).append(value)
            for following, _ in node.next_functions:
                variable = getattr(following, "variable", None)
                if isinstance(variable, Tensor) and look(variable):
                    self._came_in.setdefault(node, []).append(variable)

        for node in nodes:
            if node not in self._is_bad:
                self._work_out(node)
        for node in reversed(nodes):
            if self._is_bad.get(node) is False and (node.name().startswith(TRANSPARENT) or self._is_positive_exp(node)):
                for following, _ in node.next_functions:
                    if following is not None:
                        self._is_bad.setdefault(following, False)

    def _work_out(self, node: Any) -> None:
        """What is known of a node that no other saved the result of."""
        saved = dict(_saved(node))
        again = asked_again(node, saved)
        if again is not None:
            self._judge(node, again)
            return
        largest = largest_possible(node, saved, _size, self._size_of)
        if largest < self._limit:  # made of finite numbers that are far from it
            self._largest[node] = largest
            self._is_bad[node] = False

    def _size_of(self, node: Any) -> float:
        """The largest magnitude of what a node gave; infinite where that is not known."""
        if node is None or self._is_bad.get(node):
            return math.inf
        if node not in self._largest:
            value = getattr(node, "variable", None) if _is_leaf(node) else self._good_values.get(node)
            self._largest[node] = math.inf if value is None else _size(value)
        return self._largest[node]

    def _is_positive_exp(self, node: Any) -> bool:
        """exp makes 0 of -inf: any other finite result is that of a finite number."""
        return node.name() == "ExpBackward0" and all(bool((value > 0).all()) for name, value in _saved(node) if name == "result")

    def _judge(self, maker: Any, value: Tensor, bad: bool | None = None) -> None:
        bad = is_bad(value) if bad is None else bad
        self._is_bad[maker] = self._is_bad.get(maker, False) or bad
        if bad:
            self._bad_values.setdefault(maker, value)
        else:
            self._good_values.setdefault(maker, value)

    def suspect(self, step: int) -> Suspect | None:
        for weak_too in (False, True):
            for node in self._nodes:
                came = next((x for x in self._came_in.get(node, ()) if weak_too or self._counts(x)), None)
                if came is not None:
                    return self._outsider(node, came, step)
                if self._is_bad.get(node):
                    if not weak_too and node in self._bad_values and self._is_made_of_infinite_data(node):
                        continue
                    return self._made(node, step)
        return None

    def _counts(self, x: Tensor) -> bool:
        """Infinities that come in as data may be a mask: they are named only if there is nothing else, or if it is known what made them."""
        if (x.requires_grad and not is_masked_only(x.detach())) or bool(torch.isnan(x).any()):
            return True
        return RUNTIME.active and not self._told_of(x).weak

    def _told_of(self, x: Tensor) -> CameIn:
        """What this bad tensor is, found out once."""
        if id(x) not in self._told:
            self._told[id(x)] = x, came_in(RUNTIME.run if RUNTIME.active else None, x)
        return self._told[id(x)][1]

    def _is_made_of_infinite_data(self, node: Any) -> bool:
        """Whether the node merely hands on infinities that came in as data (a mask added to scores), or that a mask before it must have brought:
        log_softmax of finite numbers is finite."""
        value = self._bad_values[node]
        return (node in self._came_in and not bool(torch.isnan(value).any())) or (node.name().startswith("LogSoftmax") and is_masked_only(value))

    def _outsider(self, node: Any, x: Tensor, step: int) -> Suspect:
        run = RUNTIME.run if RUNTIME.active else None
        source = still_graphed(run, x) if self._graphs > 1 else None
        behind = suspect_behind([source], step, self._graphs - 1) if source is not None else None
        if behind is not None:
            return behind
        came = self._told_of(x)
        suspect = self._named(node, came.code, came.message, step, x)
        return replace(suspect, op=came.op or suspect.op, site=came.site, made_at=came.made_at, facts=dict(came.facts or suspect.facts))

    def _made(self, node: Any, step: int) -> Suspect:
        """A bad result of what is not known to be bad. Of the nodes before it that saved nothing to judge by, the first that computes is the
        earliest place that it can have been."""
        region: list[Any] = []
        pending, seen = [node], {node}
        while pending:
            current = pending.pop()
            region.append(current)
            for following, _ in current.next_functions:
                if following is not None and following not in seen and not _is_leaf(following) and following not in self._is_bad:
                    seen.add(following)
                    pending.append(following)
        region.sort(key=lambda n: self._position[n])
        bad = self._bad_values.get(node)
        makers = [n for n in region if not n.name().startswith(MOVES)] or [node]
        if bad is not None and bool(torch.isnan(bad).any()):
            # A mask brings infinities that are meant; where one is, the difference of two of them is NaN, and nothing before the mask is to
            # blame.
            masked = next((self._position[n] for n in region if n.name().startswith(_MASKS)), None)
            if masked is not None:
                makers = [n for n in makers if self._position[n] > masked] or makers
            else:
                makers = [n for n in makers if not n.name().startswith(_CANNOT_MAKE_NAN)] or makers
        maker = makers[0]
        what = kinds(bad) if bad is not None else "non-finite"
        if bad is not None and all(n.name().startswith((*_CANNOT_MAKE_NAN, *MOVES)) for n in region):
            # A sum saves nothing. One of finite numbers is never NaN, and hardly ever Inf: what was added came from outside of the graph.
            found = bad_data(bad)
            if found is not None:
                return self._outsider(maker, found, step)
            if bool(torch.isnan(bad).any()) and not bool(torch.isinf(bad).any()):
                return self._named(maker, "NS803", f"data that {_op(maker)} takes in holds NaN, and so does its result ({spread(bad)})", step, bad)
        inputs = self._inputs.get(maker, [])
        widest = max(inputs, key=lambda x: float(x.abs().max()), default=None)
        made_of = "inputs that hold Inf" if any(map(is_bad, inputs)) else "finite inputs"
        return self._named(maker, "NS805", f"{_op(maker)} of {made_of} gave {what}", step, widest if widest is not None else bad)

    def _named(self, node: Any, code: str, message: str, step: int, x: Tensor | None) -> Suspect:
        facts: dict[str, Any] = {"parameters": tuple(parameter_names(feeding_parameters(node)))}
        if x is not None:
            seen = summarise(x)
            facts |= {"dtype": seen.dtype, "shape": seen.shape, "minimum": seen.minimum, "maximum": seen.maximum}
            facts |= {"nan": seen.nan, "inf": seen.posinf + seen.neginf}
        names = tuple(n.name() for n in self._nodes)
        argument = self._argument.get(id(x)) if code == "NS803" else None
        return Suspect(code, _op(node), message, step, self._position[node], names, facts, argument, fed_by=_shapes_feeding(node))


def _size(x: Tensor) -> float:
    size = float(largest_magnitude(x)) if is_there(x) and x.is_floating_point() else math.inf
    return size if math.isfinite(size) else math.inf


def _shapes_feeding(node: Any) -> tuple[torch.Size, ...]:
    return tuple(p.shape for p in feeding_parameters(node))


def _op(node: Any) -> str:
    """`addmm` of AddmmBackward0."""
    name: str = node.name().partition("Backward")[0]
    return name[:1].lower() + name[1:]
