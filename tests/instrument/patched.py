"""What identity tests compare: the vars() of everything that a block replaces attributes of."""

import torch
import torch_optimizer

from instrument.guards import OPERATION_GUARDS, backward


def owners():
    """Every module and class that any guard replaces an attribute of, and the optimizers."""
    found = {id(s.owner): s.owner for guard in OPERATION_GUARDS for s in guard.spellings()}
    found |= {id(s.owner): s.owner for s in backward.spellings()}
    optimizers = [torch.optim.Optimizer, *(getattr(torch.optim, n) for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type))]
    optimizers += [getattr(torch_optimizer, n) for n in dir(torch_optimizer) if isinstance(getattr(torch_optimizer, n), type)]
    return [*found.values(), *{id(o): o for o in optimizers}.values()]


def photograph():
    """vars() of each owner. torch's own lazy submodules (torch._dynamo and its kin appear on first use) are not ours to compare."""
    return [{k: v for k, v in vars(owner).items() if not (owner is torch and k.startswith("_")) and k not in LAZY} for owner in owners()]


LAZY = ("onnx", "manual_seed")  # torch._dynamo, which building an optimizer imports, wraps manual_seed and adds submodules


def differences(before):
    """Names whose object is not the very same as in `before`."""
    found = []
    for owner, old, new in zip(owners(), before, photograph(), strict=True):
        found += [f"{owner.__name__}.{k}" for k in old.keys() | new.keys() if old.get(k, owners) is not new.get(k, owners)]
    return found
