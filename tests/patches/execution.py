"""Runs the before and the after of a fixture on a grid and compares them.

What "the same" means here: wherever before gave a finite number, after differs from it by a few ulp, or
is at least as close to the reference (before in float64, or mpmath where the fixture gives a formula).
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import mpmath
import torch
from torch import Tensor

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass
class Outcome:
    """A call's results and the gradients of their weighted sum, all in float64 with the dtype's own values."""

    values: list[Tensor]
    gradients: list[Tensor]


def namespace(text: str, name: str) -> dict[str, Any]:
    """The fixture's module, executed."""
    found: dict[str, Any] = {"__name__": "fixture", "torch": torch}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, name, "exec"), found)
    return found


def grid(case: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The inputs of a case in float64, one mapping a grid point; scales are the points."""
    points = max((len(spec.get("scale", [1.0])) for spec in case["inputs"].values()), default=1)
    found = []
    for point in range(points):
        generator = torch.Generator().manual_seed(1234 + point)
        inputs = {}
        for name, spec in case["inputs"].items():
            if "values" in spec or "rows" in spec:
                inputs[name] = torch.tensor(spec.get("values", spec.get("rows")), dtype=torch.float64)
            else:
                scales = spec.get("scale", [1.0])
                inputs[name] = torch.randn(spec["normal"], generator=generator, dtype=torch.float64) * scales[min(point, len(scales) - 1)]
        found.append(inputs)
    return found


def run(module: dict[str, Any], case: dict[str, Any], inputs: dict[str, Tensor], dtype: torch.dtype) -> Outcome:
    """Calls the fixture in `dtype` and differentiates a fixed weighted sum of what it returns."""
    torch.manual_seed(0)
    call = eval(case["call"], module)
    if isinstance(call, torch.nn.Module):
        call = call.to(dtype)
    leaves = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    torch.manual_seed(1)
    result = call(**leaves)
    results = [r for r in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(r, Tensor)]
    assert results, f"{case['call']} returned no tensor"
    gradients: list[Tensor] = []
    differentiable = [r for r in results if r.requires_grad]
    if differentiable:
        total = sum((r * _weights(r)).sum() for r in differentiable)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves.values(), strict=True)]
    return Outcome([r.detach().double() for r in results], [g.detach().double() for g in gradients])


def _weights(result: Tensor) -> Tensor:
    """Fixed weights in [0.5, 1], exact in every dtype, so that gradients do not cancel by symmetry."""
    count = max(result.numel(), 1)
    return (0.5 + torch.arange(count, dtype=torch.float64).remainder(5) / 8).reshape(result.shape).to(result.dtype)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype` at |x|, down to that of its subnormals."""
    info = torch.finfo(dtype)
    return (x.abs().clamp(min=info.smallest_normal) * info.eps).clamp(min=info.smallest_normal * info.eps)


def disagreement(before: Tensor, after: Tensor, reference: Tensor | None, dtype: torch.dtype, max_ulp: float, floor: float = 0.0) -> str | None:
    """Where `after` is neither within `max_ulp` of a finite `before` nor at least as close to the reference; None if nowhere.

    An ulp is that of the number itself, or of `floor` if that is larger: sums that cancel are only as
    exact as their terms.
    """
    if before.shape != after.shape:
        return f"shapes {tuple(before.shape)} and {tuple(after.shape)}"
    finite = before.isfinite()
    near = (after - before).abs() <= max_ulp * ulp(before.abs().clamp(min=floor), dtype)
    if reference is not None:
        usable = reference.isfinite()
        closer = (after - reference).abs() <= (before - reference).abs() + max_ulp * ulp(reference.abs().clamp(min=floor), dtype)
        near = near | (usable & closer)
    bad = finite & ~(near & after.isfinite())
    if not bad.any():
        return None
    index = bad.nonzero()[0].tolist()
    at = tuple(index)
    ref = None if reference is None else reference[at].item()
    return f"at {index}: before {before[at].item():.9g}, after {after[at].item():.9g}, reference {ref}"


def mp_gradient(case: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor | None:
    """The gradient of the weighted sum by mpmath, for an elementwise formula of one input; None otherwise."""
    if case.get("reference") is None or case.get("row") or len(inputs) != 1:
        return None
    ((name, values),) = inputs.items()
    with mpmath.workdps(60):

        def formula(v: Any) -> Any:
            return eval(case["reference"], {"mp": mpmath, name: v})

        flat = [float(mpmath.diff(formula, mpmath.mpf(v))) for v in values.reshape(-1).tolist()]
    return torch.tensor(flat, dtype=torch.float64).reshape(values.shape) * _weights(values)


def mp_reference(case: dict[str, Any], inputs: dict[str, Tensor], like: Tensor) -> Tensor | None:
    """The value by mpmath with 50 digits, from the fixture's formula; None if it gives none."""
    formula = case.get("reference")
    if formula is None:
        return None
    with mpmath.workdps(50):
        names = list(inputs)
        if case.get("row"):
            rows = [[[mpmath.mpf(v) for v in row] for row in inputs[name].reshape(-1, inputs[name].shape[-1]).tolist()] for name in names]
            flat: list[float] = []
            for parts in zip(*rows, strict=True):
                value = eval(formula, {"mp": mpmath, **dict(zip(names, parts, strict=True))})
                flat.extend(float(v) for v in (value if isinstance(value, list) else [value]))
        else:
            columns = [inputs[name].reshape(-1).tolist() for name in names]
            flat = [
                float(eval(formula, {"mp": mpmath, **dict(zip(names, map(mpmath.mpf, parts), strict=True))})) for parts in zip(*columns, strict=True)
            ]
    return torch.tensor(flat, dtype=torch.float64).reshape(like.shape)
