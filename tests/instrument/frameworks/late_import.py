"""python late_import.py WHEN: torch-optimizer is imported before, inside or between blocks; prints what became of each of its classes as JSON.

For each class: whether a NaN gradient was skipped inside a block with parameters and state finite, whether the step after it moved the parameters,
and whether a NaN gradient spoils them once no block is open.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from typing import Any

import torch
from torch import nn

import instrument


def _classes() -> list[type[torch.optim.Optimizer]]:
    import torch_optimizer

    found = (c for c in vars(torch_optimizer).values() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer))
    return sorted({c for c in found if c is not torch.optim.Optimizer}, key=lambda c: c.__name__)


def _built(cls: type[torch.optim.Optimizer], parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if cls.__name__ == "Lookahead":
        return cls(torch.optim.SGD(parameters, lr=0.05))  # type: ignore[arg-type]
    return cls(parameters, **({"lr": 0.05} if "lr" in inspect.signature(cls).parameters else {}))  # type: ignore[arg-type]


def _step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, factor: float) -> None:
    optimizer.zero_grad()
    loss = (parameter * torch.arange(1.0, 7.0).view(2, 3)).square().sum() * factor
    loss.backward(create_graph=type(optimizer).__name__ == "Adahessian")
    optimizer.step()


def _is_finite(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> bool:
    state = [v for s in optimizer.state.values() if isinstance(s, dict) for v in s.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return all(bool(torch.isfinite(t).all()) for t in [parameter, *state])


def _inside(cls: type[torch.optim.Optimizer], run: instrument.Run) -> dict[str, Any]:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(2, 3))
    optimizer = _built(cls, [parameter])
    for _ in range(6):  # Lookahead moves at its fifth step
        _step(parameter, optimizer, 1.0)
    before, skipped = parameter.detach().clone(), run.tally.skipped
    _step(parameter, optimizer, float("nan"))
    kept = torch.equal(before, parameter) and _is_finite(parameter, optimizer)
    skipped = run.tally.skipped - skipped
    for _ in range(6):
        _step(parameter, optimizer, 1.0)
    return {"skipped": skipped, "kept": kept, "moved": not torch.equal(before, parameter), "finite": _is_finite(parameter, optimizer)}


def _is_spoilt_outside(cls: type[torch.optim.Optimizer]) -> bool:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(2, 3))
    optimizer = _built(cls, [parameter])
    try:
        for _ in range(6):
            _step(parameter, optimizer, float("nan"))
    except RuntimeError:  # Shampoo's decomposition refuses NaN
        return True
    return not _is_finite(parameter, optimizer)


def main() -> None:
    """Print the outcome of each class."""
    warnings.simplefilter("ignore")  # torch-optimizer calls what torch has deprecated
    when = sys.argv[1]
    if when == "before":
        _classes()
    elif when == "between":
        with instrument.stable(profile="guard"):
            _classes()
    with instrument.stable(profile="guard", gradient={"max_consecutive_skips": 100}) as run:
        assert ("torch_optimizer" in sys.modules) == (when != "inside")
        outcomes = {cls.__name__: _inside(cls, run) for cls in _classes()}
    for cls in _classes():
        outcomes[cls.__name__]["spoilt_outside"] = _is_spoilt_outside(cls)
        outcomes[cls.__name__]["left"] = "instrument" in cls.step.__code__.co_filename.replace("\\", "/").split("/")
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main()
