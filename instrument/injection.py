"""Faults on purpose: `with instrument.inject("gradient", "nan", step=3): train()` shows what a training does when a number goes bad there.

Where a fault goes in, and by which seam of torch:

| place | what is spoilt | seam |
|---|---|---|
| input | a floating-point tensor handed to the model | a global forward pre-hook |
| weight | a parameter, in its memory | the same |
| buffer | a floating-point buffer, in its memory | the same |
| activation | the result of a module | a global forward hook |
| loss | the loss that backward is called on, and with it every gradient | backward |
| gradient | the gradient of a parameter, as it arrives | a hook on the parameter while backward runs |
| state | what an optimizer remembers of a parameter, in its memory | backward |
| lr | the learning rate of an optimizer, as a scheduler would leave it | backward |
| loss_scale | the scale of a GradScaler, in its memory | GradScaler.scale |

It works with and without `stable()`, inside and around it. The global random streams are not touched.
"""

from __future__ import annotations

import functools
import random
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer

from instrument.alive import instances_of, with_subclasses
from instrument.fault import VALUES, Fault, Value
from instrument.interception import Replacement, replace_attribute
from instrument.tensors import leaves_behind, tensors_in
from latent_drift.errors import UsageError

Place = Literal["input", "weight", "buffer", "activation", "loss", "gradient", "state", "lr", "loss_scale"]
PLACES: tuple[str, ...] = get_args(Place)


class InjectedNothing(UserWarning):
    """An injection ended without having found its place."""


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault that went in: the pass it went in at, where, and how many elements it changed."""

    step: int
    place: str
    target: str
    elements: int


class inject:  # it reads as a verb: `with inject("gradient", "nan", step=3):`
    """Spoil numbers at one place of a training while the block is open.

    with instrument.inject("gradient", "nan", step=3) as injected:
        train()
    injected.log            # what went in, and when

    Args:
        place: one of `PLACES`; the table at the top of this module says what each is.
        value: "nan", "inf", "-inf", "huge" (half of the dtype's largest number), "bitflip" (of `bit`), or a number.
        step: the backward pass, counted from 0 in this block, before or in which the fault goes in; an iterable for several. None: any.
        probability: of the fault at each such pass, drawn from `seed`.
        elements: how many elements of the tensor are spoilt, at places drawn from `seed`; None: all of them.
        where: pattern (with `*`) of the module's path below the model that is called ("" is the model itself), for input, weight, buffer and
            activation; of the parameter's position among an optimizer's ("0", "1") for state. Of those that match one is drawn.
        bit: which bit "bitflip" flips, counted from the lowest; None: the highest of the exponent.
        seed: of every draw. Equal arguments in equal scripts spoil the same elements.

    On leaving, every hook and name is as it was, and what was changed in memory (weight, buffer, state, lr, loss_scale) is put back, unless
    something has been written over it since.

    Raises:
        UsageError: an argument that no injection can have.

    Warns:
        InjectedNothing: the block was left without an error and nothing went in.
    """

    def __init__(
        self,
        place: Place,
        value: Value | float = "nan",
        *,
        step: int | range | list[int] | tuple[int, ...] | None = None,
        probability: float = 1.0,
        elements: int | None = 1,
        where: str = "*",
        bit: int | None = None,
        seed: int = 0,
    ) -> None:
        problems = []
        if place not in PLACES:
            problems.append(f"place must be one of {', '.join(PLACES)}; got {place!r}")
        if isinstance(value, str) and value not in VALUES:
            problems.append(f"value must be a number or one of {', '.join(VALUES)}; got {value!r}")
        if not 0.0 < probability <= 1.0:
            problems.append(f"probability must lie in (0, 1]; got {probability!r}")
        if elements is not None and elements < 1:
            problems.append(f"elements must be a positive count, or None for all; got {elements!r}")
        steps = None if step is None else frozenset([step] if isinstance(step, int) else step)
        if steps is not None and (not steps or any(not isinstance(s, int) or s < 0 for s in steps)):
            problems.append(f"step must be a count from 0, several of them, or None; got {step!r}")
        if problems:
            raise UsageError("inject: " + "; ".join(problems))
        self.place: str = place
        self.value = value
        self._steps = steps
        self._probability = probability
        self._elements = elements
        self._where = where
        self._bit = bit
        self._seed = seed
        self._open = False
        self.log: list[Injection] = []
        """What went in, in order."""

    def __enter__(self) -> inject:
        if self._open:
            raise UsageError("inject: this injection is open already; make another one")
        self._open = True
        self.log = []
        self._random = random.Random(self._seed)
        self._fault = Fault(self.value, self._elements, self._bit, self._seed)
        self._passes = 0
        self._decided: tuple[int, bool] = (-1, False)
        self._done = False
        self._model: weakref.ref[nn.Module] | None = None
        self._chosen: nn.Module | None = None
        self._depth = 0
        self._rates: list[tuple[dict[str, Any], Any, Any]] = []
        self._undo: list[Callable[[], Any]] = []
        self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._fault.restore()
        for group, before, after in reversed(self._rates):
            if group.get("lr") is after:
                group["lr"] = before
        self._rates.clear()
        self._chosen = None
        self._open = False
        if kind is None and not self.log:
            warnings.warn(f"nothing was injected: no {self.place} was met{self._when()}", InjectedNothing, stacklevel=2)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a decorator: the fault goes in at each call."""

        @functools.wraps(function)
        def with_fault(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return with_fault

    def _when(self) -> str:
        passes = f" in {self._passes} backward passes"
        return passes + ("" if self._steps is None else f", step {', '.join(map(str, sorted(self._steps)))} was asked for")

    # When -------------------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        """Whether the fault belongs into the pass under way and has not gone in yet; drawn once a pass."""
        if self._done or (self._steps is not None and self._passes not in self._steps):
            return False
        if self._decided[0] != self._passes:
            self._decided = (self._passes, self._random.random() < self._probability)
        return self._decided[1]

    def _went_in(self, target: str, elements: int) -> None:
        self.log.append(Injection(self._passes, self.place, target, elements))
        self._done = True

    def _pass_is_over(self) -> None:
        self._passes += 1
        self._done = False
        self._chosen = None

    # Seams ------------------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        if self.place in ("input", "weight", "buffer", "activation"):
            before = register_module_forward_pre_hook(self._before_forward)  # type: ignore[arg-type]  # its own page allows new arguments
            after = register_module_forward_hook(self._after_forward, always_call=True)
            self._undo += [before.remove, after.remove]
        if self.place == "loss_scale":
            self._replace(GradScaler, "scale", self._around_scale)
        self._replace(torch.autograd, "backward", self._around_backward)
        self._replace(torch.autograd, "grad", self._around_grad)

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        replacement: Replacement = replace_attribute(owner, name, make(getattr(owner, name)))
        self._undo.append(replacement.undo)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._depth += 1
        if not self._due() or torch.compiler.is_compiling():
            return None
        if self._depth == 1:
            self._model = weakref.ref(module)
            self._chosen = self._choose(module)
        if module is not self._chosen:
            return None
        if self.place == "input":
            return self._spoilt_arguments(module, args)
        if self.place in ("weight", "buffer"):
            source = module.named_parameters(recurse=False) if self.place == "weight" else module.named_buffers(recurse=False)
            name, tensor = self._random.choice([(n, t) for n, t in source if t.is_floating_point() and t.numel()])
            self._write(tensor.detach(), f"{self._path(module)}.{name}".lstrip("."))
        return None

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        self._depth -= 1
        if self.place != "activation" or module is not self._chosen or not self._due():
            return None
        found = next((t for t in tensors_in(output) if t.is_floating_point() and t.numel()), None)
        if found is None:
            return None
        spoilt = self._spoilt(found, self._path(module) or type(module).__name__)
        return _exchanged(output, found, spoilt)

    def _choose(self, model: nn.Module) -> nn.Module | None:
        """One of the modules of this model that match and have what is to be spoilt."""
        fitting = [module for path, module in model.named_modules() if fnmatchcase(path, self._where) and self._fits(module, path)]
        return self._random.choice(fitting) if fitting else None

    def _fits(self, module: nn.Module, path: str) -> bool:
        if self.place == "weight":
            return any(p.is_floating_point() and p.numel() for p in module.parameters(recurse=False))
        if self.place == "buffer":
            return any(b.is_floating_point() and b.numel() for b in module.buffers(recurse=False))
        if self.place == "input":
            return path == "" or self._where != "*"
        return not any(True for _ in module.children())  # an activation: of the innermost modules

    def _path(self, module: nn.Module) -> str:
        model = self._model() if self._model is not None else None
        return next((path for path, m in model.named_modules() if m is module), "") if model is not None else ""

    def _spoilt_arguments(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        found = next((t for t in tensors_in(args) if t.is_floating_point() and t.numel()), None)
        if found is None:
            return None
        changed: tuple[Any, ...] = _exchanged(args, found, self._spoilt(found, f"argument of {self._path(module) or type(module).__name__}"))
        return changed

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            if torch._C._current_graph_task_id() != -1:  # a checkpoint's own, inside of one
                return original(*args, **kwargs)
            with self._in_backward(args[0] if args else kwargs.get("tensors")) as roots:
                if roots is not None:
                    args, kwargs = ((roots, *args[1:]), kwargs) if args else (args, {**kwargs, "tensors": roots})
                return original(*args, **kwargs)

        return backward

    def _around_grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def grad(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("create_graph") or torch._C._current_graph_task_id() != -1:
                return original(*args, **kwargs)  # part of a loss, not yet the end of a pass
            with self._in_backward(args[0] if args else kwargs.get("outputs")) as roots:
                if roots is not None:
                    args, kwargs = ((roots, *args[1:]), kwargs) if args else (args, {**kwargs, "outputs": roots})
                result = original(*args, **kwargs)
                return self._spoilt_gradients(result)

        return grad

    def _in_backward(self, roots: Any) -> _Backward:
        return _Backward(self, list(roots) if isinstance(roots, list | tuple) else [roots])

    def _spoilt_gradients(self, result: Any) -> Any:
        """What `autograd.grad` returns never reaches a parameter's hook."""
        if self.place != "gradient" or not self._due() or not isinstance(result, tuple):
            return result
        fitting = [i for i, g in enumerate(result) if isinstance(g, Tensor) and g.is_floating_point() and g.numel()]
        if not fitting:
            return result
        at = self._random.choice(fitting)
        return tuple(self._spoilt(g, f"gradient {i}") if i == at else g for i, g in enumerate(result))

    def _around_scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def scale(scaler: GradScaler, outputs: Any) -> Any:
            if scaler.is_enabled() and self._due():
                if scaler._scale is None:
                    original(scaler, outputs)
                if isinstance(scaler._scale, Tensor):
                    self._write(scaler._scale, "GradScaler")
            return original(scaler, outputs)

        return scale

    # What -------------------------------------------------------------------------------------------------------------

    def _spoilt(self, x: Tensor, target: str) -> Tensor:
        spoilt, elements = self._fault.spoilt(x)
        self._went_in(target, elements)
        return spoilt

    def _write(self, x: Tensor, target: str) -> None:
        self._went_in(target, self._fault.write(x))

    def _spoil_state(self, leaves: list[Tensor]) -> None:
        """One tensor of the memory of one optimizer of these leaves."""
        found = []
        for optimizer in _optimizers_of(leaves):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for position, parameter in enumerate(parameters):
                state = optimizer.state.get(parameter, {})
                for key, value in state.items() if isinstance(state, dict) and fnmatchcase(str(position), self._where) else ():
                    if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and value.dim():
                        found.append((f"{type(optimizer).__name__} {position} {key}", value))
        if found:
            name, tensor = self._random.choice(found)
            self._write(tensor, name)

    def _spoil_rates(self, leaves: list[Tensor]) -> None:
        optimizers = [o for o in _optimizers_of(leaves) if any("lr" in group for group in o.param_groups)]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                before = group.get("lr")
                if before is None:
                    continue
                if isinstance(before, Tensor):
                    after: Any = self._fault.bad(before.detach().reshape(-1)).view(before.shape)
                else:
                    after = float(self._fault.bad(torch.tensor([float(before)], dtype=torch.float64)))
                group["lr"] = after
                self._rates.append((group, before, after))
        if optimizers:
            self._went_in(", ".join(type(o).__name__ for o in optimizers), len(optimizers))


class _Backward:
    """One backward pass: what has to be spoilt before it and while it runs, and the count after it."""

    def __init__(self, owner: inject, roots: list[Any]) -> None:
        self._owner = owner
        self._roots = roots
        self._handles: list[Any] = []

    def __enter__(self) -> list[Any] | None:
        owner = self._owner
        if not owner._due():
            return None
        if owner.place == "state":
            owner._spoil_state(leaves_behind(self._roots))
        elif owner.place == "lr":
            owner._spoil_rates(leaves_behind(self._roots))
        elif owner.place == "loss":
            return self._spoilt_roots()
        elif owner.place == "gradient":
            leaves = [leaf for leaf in leaves_behind(self._roots) if leaf.is_floating_point() and leaf.numel()]
            if leaves:
                self._handles.append(owner._random.choice(leaves).register_hook(self._on_gradient))
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._owner._pass_is_over()

    def _on_gradient(self, gradient: Tensor) -> Tensor | None:
        if not self._owner._due() or gradient.layout is not torch.strided:
            return None
        return self._owner._spoilt(gradient, f"gradient of {list(gradient.shape)}")

    def _spoilt_roots(self) -> list[Any]:
        """The loss times a factor that makes it the bad number: so its gradients are bad as well."""
        roots = list(self._roots)
        for index, root in enumerate(roots):
            if isinstance(root, Tensor) and root.is_floating_point() and root.requires_grad:
                bad = self._owner._fault.bad(root.detach().reshape(-1)).view(root.shape)
                self._owner._went_in("loss", root.numel())
                value = root.detach()
                roots[index] = root * torch.where(torch.isfinite(bad) & (value != 0), bad / value, bad)
                root.data = bad.to(root.dtype)  # what the script prints is what backward was called on
        return roots


def _exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    """Nested data with one tensor exchanged."""
    if value is old:
        return new
    if isinstance(value, list):
        return [_exchanged(item, old, new) for item in value]
    if isinstance(value, tuple):
        items = [_exchanged(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _exchanged(item, old, new) for key, item in value.items()}
    return value


def _optimizers_of(leaves: list[Tensor]) -> list[Optimizer]:
    """The optimizers of any of these tensors. Faults are rare, so all objects may be walked over."""
    own = {id(leaf) for leaf in leaves}
    alive = [o for o in instances_of(with_subclasses(Optimizer)) if hasattr(o, "param_groups")]
    return [o for o in alive if any(id(p) in own for group in o.param_groups for p in group["params"])]
