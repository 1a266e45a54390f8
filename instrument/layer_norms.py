"""Gradient norms of every parameter at a few steps of a run: which layer it was that exploded, vanished or went bad.

A column is taken at steps 1, 2, 4, 8 and then at every sixteenth; when the columns are full every second one goes and the distance doubles, so
that they stay spread over the whole run. Steps whose gradient is not finite are columns of their own, the first few of them. Between columns a
step pays for one comparison.
"""

from __future__ import annotations

import json
import math
import types
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from instrument.alive import instances_of, with_subclasses
from instrument.callsite import user_frame
from instrument.runtime import without_function_modes
from latent_drift.errors import UsageError
from latent_drift.numerics.finite import dense_values
from latent_drift.numerics.gradients import global_norm

MOST_COLUMNS = 64
MOST_BAD_COLUMNS = 16
FIRST_STRIDE = 16
"""Steps between columns at first: one norm of every tensor costs about a tenth of a small step, so a sixteenth of that is below one per cent, and
half of it again once the columns have been thinned."""

_ABSENT = -1.0  # a norm is never negative: this parameter had no gradient
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Gradient norms by parameter (rows) and step (columns). `norms[row][column]` is None where the parameter had no gradient or did not exist.

    `steps` counts as events do, by the steps finished before: the first is 0.
    """

    steps: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    norms: tuple[tuple[float | None, ...], ...] = ()

    def as_json(self) -> str:
        """layers.json: strict JSON, non-finite numbers as the strings "nan" and "inf"."""
        rows = [[str(v) if v is not None and not math.isfinite(v) else v for v in row] for row in self.norms]
        return json.dumps({"steps": self.steps, "names": self.names, "norms": rows}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> LayerTable:
        """The table of a layers.json.

        Raises:
            UsageError: the text is not such a table.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            norms = tuple(tuple(None if v is None else float(v) for v in row) for row in document["norms"])
            return cls(tuple(document["steps"]), tuple(document["names"]), norms)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"this is no layers.json of this tool: {type(error).__name__}: {error}") from error


def _nobody() -> None:
    return None


class _Columns:
    """The columns of one optimizer's parameters."""

    def __init__(self, optimizer: Optimizer | None) -> None:
        self.optimizer: Callable[[], Optimizer | None] = weakref.ref(optimizer) if optimizer is not None else _nobody
        self.rows: dict[int, int] = {}  # id of a parameter -> its row
        self.paths: list[Path] = []
        self.step = 0
        self.due = 1
        self.stride = FIRST_STRIDE
        self.ordinary: list[tuple[int, array[float]]] = []
        self.bad: list[tuple[int, array[float]]] = []

    def take(self, parameters: Sequence[Tensor], scale: float, *, bad: bool) -> None:
        """Add a column for the step under way."""
        if bad and len(self.bad) >= MOST_BAD_COLUMNS:
            return
        unknown = [p for p in parameters if id(p) not in self.rows]
        for parameter, path in zip(unknown, parameter_paths(unknown) if unknown else (), strict=True):
            self.rows[id(parameter)] = len(self.paths)
            self.paths.append(path)
        values = array("d", [_ABSENT]) * len(self.paths)
        with_gradient = [(self.rows[id(p)], p.grad) for p in parameters if p.grad is not None]
        for (row, _), norm in zip(with_gradient, _norms([gradient for _, gradient in with_gradient]), strict=True):
            values[row] = norm / scale
        if bad:
            self.bad.append((self.step - 1, values))
            return
        self.ordinary.append((self.step - 1, values))
        if len(self.ordinary) > MOST_COLUMNS:
            del self.ordinary[1::2]
            self.stride *= 2
        self.due = self.step * 2 if self.step < FIRST_STRIDE else self.step - self.step % self.stride + self.stride


class LayerNorms:
    """The gradient norms of a run by parameter and step."""

    def __init__(self) -> None:
        self._columns: dict[int, _Columns] = {}

    def see(self, optimizer: Optimizer, bad: bool, scale: float = 1.0) -> None:
        """An optimizer is about to step: take a column if it is time for one.

        Args:
            bad: a gradient is not finite: the step is a column of its own.
            scale: a factor that the gradients still carry.
        """
        known = self._columns.get(id(optimizer))
        if known is None or known.optimizer() is not optimizer:  # another one that got the same id
            known = self._columns[id(optimizer)] = _Columns(optimizer)
        known.step += 1
        if bad or known.step >= known.due:
            known.take([p for group in optimizer.param_groups for p in group["params"]], scale, bad=bad)

    def see_leaves(self, leaves: Sequence[Tensor], bad: bool) -> None:
        """The same for leaves that are updated by hand."""
        known = self._columns.setdefault(0, _Columns(None))
        known.step += 1
        if bad or known.step >= known.due:
            known.take(leaves, 1.0, bad=bad)

    def table(self) -> LayerTable:
        """Everything taken so far, in one table: the parameters of several optimizers below one another."""
        parts = list(self._columns.values())
        taken = [{step: values for step, values in [*part.ordinary, *part.bad]} for part in parts]
        steps = sorted({step for columns in taken for step in columns})
        rows: list[tuple[float | None, ...]] = []
        for part, columns in zip(parts, taken, strict=True):
            rows += [tuple(_cell(columns.get(step), row) for step in steps) for row in range(len(part.paths))]
        return LayerTable(tuple(steps), tuple(_shown([path for part in parts for path in part.paths])), tuple(rows))


def _shown(paths: Sequence[Path]) -> list[str]:
    """One name a path: the model is said where there are several, and what is still the same is numbered."""
    several = len({model for model, _ in paths}) > 1
    names = [f"{model}.{name}" if several and model and name else name or model for model, name in paths]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names


def _cell(values: array[float] | None, row: int) -> float | None:
    if values is None or row >= len(values) or values[row] == _ABSENT:
        return None
    return values[row]


def _norms(gradients: Sequence[Tensor | None]) -> list[float]:
    """The norm of each gradient, of a DTensor that of this process's part: no process waits for another here."""
    with torch.no_grad(), without_function_modes():
        values = [
            g if type(g) is Tensor and g.layout is torch.strided and not g.is_complex() else dense_values(g) for g in gradients if g is not None
        ]
        if not values:
            return []
        try:
            taken = torch._foreach_norm(values, dtype=torch.float32 if values[0].dtype.itemsize == 2 else None)
            # From an accelerator they come in one read; on the CPU, reading each costs less than joining them.
            norms = [norm.item() for norm in taken] if values[0].is_cpu else torch.stack(taken).tolist()
        except (RuntimeError, NotImplementedError):  # several devices or dtypes
            norms = [math.nan] * len(values)
        # what is not finite may be squares that overflowed
        return [norm if math.isfinite(norm) else global_norm([value]) for norm, value in zip(norms, values, strict=True)]


# Names ----------------------------------------------------------------------------------------------------------------


Path = tuple[str, str]
"""The model that holds a parameter, as the script calls it, and the parameter's path in it; one of them may be empty."""


def parameter_paths(parameters: Sequence[Tensor]) -> list[Path]:
    """What a person calls these parameters: `("model", "encoder.enc_logvar.weight")`, a plain variable by its name, else by its shape.

    Models are looked for in the variables of the running frames and one attribute deep (`self.model`); only if that does not explain every
    parameter, among all objects of the process.
    """
    wanted = {id(p) for p in parameters}
    paths: dict[int, Path] = {}
    _name(paths, wanted, _found_in_frames())
    if len(paths) < len(wanted):
        _name(paths, wanted, ((type(o).__name__, o) for o in instances_of(with_subclasses(nn.Module))))
    return [paths.get(id(p)) or ("", f"a parameter of shape {tuple(p.shape)}") for p in parameters]


def _found_in_frames() -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Label and value of the models and tensors that the running frames hold, in variables or in attributes of them."""
    frame = user_frame()
    while frame is not None:
        variables = {**frame.f_globals, **frame.f_locals}
        for label, value in variables.items():
            if issubclass(type(value), nn.Module | Tensor):
                yield label, value
            else:
                yield from ((name, item) for name, item in _attributes(value).items() if issubclass(type(item), nn.Module))
        frame = frame.f_back


def _attributes(value: object) -> dict[str, Any]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return dict(attributes) if isinstance(attributes, dict) and not isinstance(value, types.ModuleType) else {}


def _name(paths: dict[int, Path], wanted: set[int], candidates: Iterable[tuple[str, nn.Module | Tensor]]) -> None:
    """Add the paths that these modules give to wanted parameters: the module that explains most comes first, of several the one with the shortest
    names, a model rather than its wrapper."""
    found: dict[int, tuple[str, dict[int, str]]] = {}
    for label, value in candidates:
        if id(value) not in found:
            named = [("", value)] if isinstance(value, Tensor) else value.named_parameters()
            given = {id(p): _plain_name(value, name) for name, p in named if id(p) in wanted and id(p) not in paths}
            if given:
                found[id(value)] = (label, given)
    while found:
        key, (label, given) = max(found.items(), key=lambda item: (len(item[1][1]), -sum(map(len, item[1][1].values()))))
        del found[key]
        left = {parameter: name for parameter, name in given.items() if parameter not in paths}
        if len(left) == len(given):
            paths.update({parameter: (label, name) for parameter, name in given.items()})
        elif left:
            found[key] = (label, left)


def _plain_name(owner: object, name: str) -> str:
    name = name.replace("_orig_mod.", "")
    return name.removeprefix("module.") if type(owner).__name__ in _WRAPPERS else name
