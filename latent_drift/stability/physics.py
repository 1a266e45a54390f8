"""What makes physics-informed losses hard to train: terms whose gradients differ by orders, and a curvature that bounds the learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latent_drift.errors import NumericalError, UsageError
from latent_drift.stability.operators import Operator, lanczos

# Gradient norms of two terms this far apart: the smaller term is not trained until the larger one is.
_IMBALANCE = 100.0
# Cosine of two terms' gradients below which a step for one is a step against the other.
_CONFLICT = -0.5


def physics_informed_report(model: nn.Module, terms: Mapping[str, Tensor], rtol: float = 1e-2, max_steps: int = 60) -> dict[str, Any]:
    """How the terms of a loss (equation residual, boundary and initial values, data) pull at a model's parameters.

    Args:
        model: the parameters that want a gradient count.
        terms: name -> scalar loss with its graph, unweighted; the first one is the reference, as a rule the residual of the equation.
        rtol: wanted relative accuracy of the curvatures.
        max_steps: Hessian-vector products spent on each of them at most.

    Returns:
        `terms`: name -> `loss`, `gradient_norm`, `gradient_max` and `gradient_mean` (of magnitudes), `curvature` (largest |eigenvalue|
        of the Hessian) and `curvature_error` (a bound on its distance from an eigenvalue); `weights`: name -> factor that brings the term's
        mean gradient to the size of the reference's largest, 1 for the reference and for terms without a gradient; `imbalance`: largest over
        smallest gradient norm; `cosines`: (name, name) -> cosine of the two gradients; `curvature` of the sum, and `learning_rate_bound`,
        2 / curvature: gradient descent is the explicit Euler method for the gradient flow, and explodes beyond it (inf where the curvature
        is 0); `advice`.

    Raises:
        UsageError: no terms, or one is no scalar with a graph to the model.
        NumericalError: a term is not finite (named).

    *Numerics*: Lanczos on Hessian-vector products through autograd, in the parameters' dtype; no matrix is formed. Curvatures are lower
    bounds, within `rtol` unless `max_steps` was reached. The terms' graphs are kept, so that `backward` may follow.

    *Source*: weights: Wang, Teng and Perdikaris, Understanding and mitigating gradient flow pathologies in physics-informed neural
    networks, SIAM J. Sci. Comput. 43, 2021, algorithm 1. 2 / curvature: Cohen et al., Gradient descent on neural networks typically occurs at
    the edge of stability, 2021.

    >>> import torch
    >>> u = torch.nn.Linear(1, 1, bias=False)
    >>> x = torch.ones(4, 1)
    >>> report = physics_informed_report(u, {"residual": (10 * u(x)).square().mean(), "boundary": (u(x) - 1).square().mean()})
    >>> round(report["terms"]["residual"]["curvature"]), round(report["learning_rate_bound"], 5)
    (200, 0.0099)
    """
    if not terms:
        raise UsageError("physics_informed_report: terms is empty; pass {'residual': loss, 'boundary': loss, ...}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients: dict[str, Tensor] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, loss in terms.items():
        gradient = _gradient(name, loss, parameters)
        gradients[name] = gradient.detach().double() if gradient.device.type != "mps" else gradient.detach()
        sizes = gradients[name].abs()
        curvature, error = _curvature(gradient, parameters, rtol, max_steps)
        rows[name] = {
            "loss": float(loss.detach()),
            "gradient_norm": float(torch.linalg.vector_norm(gradients[name])),
            "gradient_max": float(sizes.max()),
            "gradient_mean": float(sizes.mean()),
            "curvature": curvature,
            "curvature_error": error,
        }
    reference = next(iter(rows))
    weights = {
        name: 1.0
        if name == reference or row["gradient_mean"] == 0 or rows[reference]["gradient_max"] == 0
        else rows[reference]["gradient_max"] / row["gradient_mean"]
        for name, row in rows.items()
    }
    norms = {name: row["gradient_norm"] for name, row in rows.items() if row["gradient_norm"] > 0}
    cosines = {
        (a, b): float(gradients[a] @ gradients[b]) / (norms[a] * norms[b]) if a in norms and b in norms else 0.0
        for a, b in itertools.combinations(rows, 2)
    }
    whole = (
        rows[reference]["curvature"]
        if len(rows) == 1
        else _curvature(_gradient("sum", sum(terms.values()), parameters), parameters, rtol, max_steps)[0]
    )
    report = {
        "terms": rows,
        "weights": weights,
        "imbalance": max(norms.values()) / min(norms.values()) if norms else 1.0,
        "cosines": cosines,
        "curvature": whole,
        "learning_rate_bound": 2.0 / whole if whole > 0 else math.inf,
    }
    return {**report, "advice": _advice(rows, norms, weights, cosines)}


def _gradient(name: str, loss: Any, parameters: list[nn.Parameter]) -> Tensor:
    """The flat gradient of one term, with a graph of its own."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = (
            f"a tensor of shape {tuple(loss.shape)}{'' if loss.requires_grad else ' without a graph'}"
            if isinstance(loss, Tensor)
            else type(loss).__name__
        )
        raise UsageError(f"physics_informed_report: term {name!r} must be a scalar loss with a graph to the model's parameters; got {what}")
    if not bool(loss.detach().isfinite()):
        raise NumericalError(f"physics_informed_report: term {name!r} is {loss.item()}; bound its inputs, or look for its origin with diagnose")
    found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def _curvature(gradient: Tensor, parameters: list[nn.Parameter], rtol: float, max_steps: int) -> tuple[float, float]:
    """(largest |eigenvalue| of the Hessian whose gradient this is, its error bound)."""
    if not gradient.requires_grad:  # linear in the parameters
        return 0.0, 0.0

    def product(v: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient, parameters, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in found]).detach()

    n = gradient.numel()
    found = lanczos(Operator(product, product, n, n, gradient.dtype, gradient.device), 1, rtol, max_steps)
    return float(found.values[0]), float(found.errors[0])


def _advice(rows: dict[str, dict[str, float]], norms: dict[str, float], weights: dict[str, float], cosines: dict[tuple[str, str], float]) -> str:
    silent = [name for name in rows if name not in norms]
    if silent:
        return f"{', '.join(silent)} has no gradient: it is satisfied exactly, or cut off from the parameters"
    sentences = []
    small, large = min(norms, key=lambda n: norms[n]), max(norms, key=lambda n: norms[n])
    if norms[large] > _IMBALANCE * norms[small]:
        listed = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
        ratio = norms[large] / norms[small]
        sentences.append(
            f"the gradient of {large} is {ratio:.3g} times that of {small}: bring the equation to variables of size one, "
            f"or weight the terms ({listed})"
        )
    against = [f"{a} and {b} (cosine {value:.2f})" for (a, b), value in cosines.items() if value < _CONFLICT]
    if against:
        sentences.append(f"{', '.join(against)} pull against each other: check signs and units, or train them in turn")
    return "; ".join(sentences) if sentences else "the terms are balanced"
