"""Exact copies of a training state, and their return in place.

The traps: a copy made with `deepcopy(model)` unties tied weights; `load_state_dict` of an optimizer
replaces its state tensors, so that CUDA graphs, fused kernels and other holders of the old ones go on
with stale memory; and what neither holds (random state, train or eval mode, the scaler's scale) is lost.
Here every value returns into the very tensor it came from, bit for bit, and each storage is copied once.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from latent_drift.errors import UsageError

Storage = Literal["device", "host"]
"""Where copies are kept: beside the original, or in main memory."""


@runtime_checkable
class HasState(Protocol):
    """Anything with `state_dict` and `load_state_dict`: schedulers, scalers, samplers, histories."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def copied(value: Any, storage: Storage = "device") -> Any:
    """A copy of nested data in which tensors are cloned without history; dicts, lists, tuples, sets and plain objects keep their types."""
    return _copy(value, storage, {})


def _copy(value: Any, storage: Storage, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        clone = value.detach()
        clone = clone.to("cpu", copy=True) if storage == "host" and clone.device.type != "cpu" else clone.clone()
        return clone
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = _copy(item, storage, memo)
        return made
    if isinstance(value, list):
        return [_copy(item, storage, memo) for item in value]
    if type(value) is tuple:
        return tuple(_copy(item, storage, memo) for item in value)
    return copy.deepcopy(value, memo)


def _fits(target: Any, value: Any) -> bool:
    return (
        isinstance(target, Tensor)
        and isinstance(value, Tensor)
        and target.shape == value.shape
        and target.dtype == value.dtype
        and target.layout == value.layout
        and not is_lazy(target)
    )


def _returned(target: Any, value: Any, storage: Storage) -> Any:
    """`value` put into `target` where that is a container or tensor of the same kind, else a fresh copy of it."""
    if _fits(target, value):
        with torch.no_grad():
            target.detach().copy_(value)
        return target
    if isinstance(target, dict) and isinstance(value, dict):
        for key in [k for k in target if k not in value]:
            del target[key]
        for key, item in value.items():
            target[key] = _returned(target.get(key), item, storage)
        return target
    if isinstance(target, list) and isinstance(value, list):
        kept = [_returned(old, new, storage) for old, new in zip(target, value, strict=False)]
        target[:] = kept + [copied(item) for item in value[len(kept) :]]
        return target
    if isinstance(value, Tensor) and isinstance(target, Tensor):
        return value.detach().to(target.device, copy=True)
    return copied(value)


class ModuleSnapshot:
    """The parameters, buffers, extra state and train/eval modes of a module."""

    def __init__(self, module: nn.Module, storage: Storage = "device") -> None:
        self.module = module
        self._storage = storage
        self.refresh()

    def refresh(self) -> None:
        """Take the copies anew, into the memory of the old ones where they fit."""
        previous: dict[int, tuple[Tensor, Tensor]] = getattr(self, "_values", {})
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots: list[tuple[nn.Module, str, bool, Tensor | None]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._extra: list[tuple[nn.Module, Any]] = []
        for module in self.module.modules():  # each shared module once
            self._modes.append((module, module.training))
            for is_parameter, registry in ((True, module._parameters), (False, module._buffers)):
                for name, tensor in registry.items():
                    self._slots.append((module, name, is_parameter, tensor))
                    if tensor is None or id(tensor) in self._values:  # a tied weight is one tensor under two names
                        continue
                    if is_lazy(tensor):
                        raise UsageError(f"snapshot: {type(module).__name__}.{name} has no shape yet; run one forward pass before taking a snapshot")
                    old = previous.get(id(tensor))
                    if old is not None and old[0] is tensor and _fits(old[1], tensor):
                        old[1].copy_(tensor.detach())
                        self._values[id(tensor)] = old
                    else:
                        self._values[id(tensor)] = (tensor, copied(tensor, self._storage))
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                self._extra.append((module, copied(module.get_extra_state())))

    def restore(self) -> None:
        """Put every value back into the tensor it was copied from, and that tensor back under its name."""
        with torch.no_grad():
            for tensor, value in self._values.values():
                if tensor.shape != value.shape or tensor.dtype != value.dtype:  # .data was replaced meanwhile
                    tensor.data = value.to(tensor.device, copy=True)
                else:
                    tensor.detach().copy_(value)
            for module, name, is_parameter, slot in self._slots:
                registry: dict[str, Any] = module._parameters if is_parameter else module._buffers
                registry[name] = slot
            for module, state in self._extra:
                module.set_extra_state(copied(state))
            for module, mode in self._modes:
                module.training = mode


class OptimizerSnapshot:
    """State and hyperparameters of an optimizer, returned into the state tensors it holds."""

    def __init__(self, optimizer: torch.optim.Optimizer, storage: Storage = "device") -> None:
        self.optimizer = optimizer
        self._storage = storage
        self.refresh()

    def refresh(self) -> None:
        """Take the copies anew."""
        self._state = {parameter: copied(state, self._storage) for parameter, state in self.optimizer.state.items()}
        self._groups = [
            ({key: copied(value, self._storage) for key, value in group.items() if key != "params"}, list(group["params"]))
            for group in self.optimizer.param_groups
        ]

    def restore(self) -> None:
        """Put state, groups and hyperparameters back; state that did not exist then is dropped."""
        state = self.optimizer.state
        for parameter in [p for p in state if p not in self._state]:
            del state[parameter]
        for parameter, value in self._state.items():
            state[parameter] = _returned(state.get(parameter), value, self._storage)
            _move_state(state[parameter], parameter, self._storage)
        groups = self.optimizer.param_groups
        del groups[len(self._groups) :]
        for index, (values, parameters) in enumerate(self._groups):
            if index == len(groups):
                groups.append({})
            group = groups[index]
            for key in [k for k in group if k not in values and k != "params"]:
                del group[key]
            for key, value in values.items():
                group[key] = _returned(group.get(key), value, self._storage)
            group["params"] = list(parameters)


def _move_state(state: Any, parameter: Any, storage: Storage) -> None:
    """State that had to be made anew from a host copy goes back to its parameter's device (step counters may stay)."""
    if storage == "host" and isinstance(state, dict) and isinstance(parameter, Tensor):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.device != parameter.device:
                state[key] = value.to(parameter.device)


class RandomSnapshot:
    """The random states: Python, NumPy (if loaded), torch on the CPU and on every device in use, and given generators."""

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._generators = list(generators)
        self.refresh()

    def refresh(self) -> None:
        """Take the states anew."""
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        self._own = [generator.get_state() for generator in self._generators]

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        for generator, state in zip(self._generators, self._own, strict=True):
            generator.set_state(state)


class StateSnapshot:
    """A copy of anything with `state_dict`: learning-rate schedulers, a GradScaler, a gradient history."""

    def __init__(self, holder: HasState) -> None:
        self.holder = holder
        self.refresh()

    def refresh(self) -> None:
        """Take the copy anew."""
        self._state = copied(self.holder.state_dict())

    def restore(self) -> None:
        """Load the copy back."""
        if self._state or not isinstance(self.holder, torch.amp.GradScaler):  # a disabled scaler has nothing, and refuses nothing
            self.holder.load_state_dict(copied(self._state))


class Snapshot:
    """Everything a training step changes, copied together and returned together.

    Args:
        modules: a module or several; tied weights, within one or across several, are copied once each.
        optimizers: an optimizer or several.
        others: schedulers, scalers, histories: anything with `state_dict` and `load_state_dict`.
        random: whether the global random states belong to it.
        generators: further generators (a DataLoader's, say).
        storage: "device" keeps copies beside the originals, "host" in main memory.

    Restoring is exact: parameters, buffers, optimizer state, hyperparameters, schedules, scale and random
    streams continue bit for bit as they would have from the moment of the copy. Gradients are not part of it.

    Raises:
        UsageError: something is neither module, optimizer nor holder of a state, or a lazy module has no shape yet.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module] = (),
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
        others: HasState | Sequence[HasState] = (),
        *,
        random: bool = True,
        generators: Iterable[torch.Generator] = (),
        storage: Storage = "device",
    ) -> None:
        if storage not in ("device", "host"):
            raise UsageError(f"snapshot: storage must be 'device' or 'host'; got {storage!r}")
        self._parts: list[ModuleSnapshot | OptimizerSnapshot | StateSnapshot | RandomSnapshot] = []
        module_list = _listed(modules, nn.Module, "modules")
        if len(module_list) == 1:
            self._parts.append(ModuleSnapshot(module_list[0], storage))
        elif module_list:
            self._parts.append(ModuleSnapshot(_Several(module_list), storage))
        self._parts += [OptimizerSnapshot(o, storage) for o in _listed(optimizers, torch.optim.Optimizer, "optimizers")]
        # Schedulers write learning rates when they load, so optimizers are restored once more after them.
        self._parts += [StateSnapshot(other) for other in _listed(others, HasState, "others")]
        if random or generators:
            self._parts.append(RandomSnapshot(generators))

    def refresh(self) -> None:
        """Take the copies anew, reusing their memory."""
        for part in self._parts:
            part.refresh()

    def restore(self) -> None:
        """Return everything to where it was when the copies were taken; may be repeated."""
        optimizers = [part for part in self._parts if isinstance(part, OptimizerSnapshot)]
        for part in self._parts:
            if part not in optimizers:
                part.restore()
        for optimizer in optimizers:
            optimizer.restore()

    def bytes(self) -> int:
        """Memory that the tensor copies take."""
        total = 0
        for part in self._parts:
            if isinstance(part, ModuleSnapshot):
                total += sum(value.nbytes for _, value in part._values.values())
            elif isinstance(part, OptimizerSnapshot):
                total += _nbytes(part._state)
        return total


class _Several(nn.Module):
    """Modules side by side, so that weights tied across them are seen once; registers nothing with its parts."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            self._modules[str(index)] = module


def _listed(value: Any, kind: type, argument: str) -> list[Any]:
    found = [value] if isinstance(value, kind) else [] if value is None else list(value)
    for item in found:
        if not isinstance(item, kind):
            raise UsageError(f"snapshot: {argument} takes {kind.__name__} objects; got {type(item).__name__}")
    return found


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_nbytes(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_nbytes(item) for item in value)
    return 0
