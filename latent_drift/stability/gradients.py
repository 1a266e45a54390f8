"""Clipping, checking and normalising gradients: the public face of `latent_drift.numerics.gradients`.

Every function takes a module, a list or a generator of parameters (the generator is read once; the audited
utility exhausts it on its first count and then clips nothing), and gradients of any layout, dtype and device
mixed. Norms of sharded gradients (DTensor) are over the shards of all processes, which then must call together.
A gradient that is not finite is never used as a factor: `torch.nn.utils.clip_grad_norm_` turns one Inf into zeros
everywhere else, and one NaN into NaN everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from latent_drift.config.active import active
from latent_drift.errors import NumericalError, UsageError
from latent_drift.numerics.finite import dense_values
from latent_drift.numerics.gradients import (
    GradientHistory,
    clip_adaptively_,
    clip_by_global_norm_,
    clip_by_value_,
    gradients_of,
    parameters_of,
    scale_,
    zero_nonfinite_,
)
from latent_drift.numerics.shards import joined_norm, joined_norms

Parameters = nn.Module | Tensor | Iterable[Tensor]


def _apply_nonfinite_policy(gradients: list[Tensor], norm: float, function: str) -> float:
    """What the config says about gradients that are not finite; the norm afterwards."""
    if math.isfinite(norm):
        return norm
    policy = active().gradient.nonfinite
    if policy == "raise":
        raise NumericalError(f"{function}: the gradient norm is {norm}; skip this step, or look for its origin with check_gradients(model)")
    if policy == "zero":
        zero_nonfinite_(gradients)
        return joined_norm(gradients)
    return norm


def clip_gradients(
    parameters: Parameters, max_norm: float | None = None, max_value: float | None = None, norm_type: float | Literal["inf"] = 2.0
) -> dict[str, Any]:
    """Bound the gradients, in place, and say what they were.

    Args:
        parameters: a module, a tensor, a list or a generator of parameters.
        max_norm: largest global norm; the config's `gradient.default_max_norm` if neither bound is given.
        max_value: bounds each element first.
        norm_type: p of the norm; inf or "inf", as torch takes them, for the largest magnitude.

    Returns:
        `grad_norm_before` and `grad_norm_after` (floats), `num_params_with_grad`, `clipped`. If the norm before is NaN or inf,
        nothing was changed and the step should be skipped, unless the config's `gradient.nonfinite` says to zero the bad elements
        or to raise.

    Raises:
        NumericalError: a gradient is not finite and the config says to raise.
        UsageError: a bound is not positive.

    *Numerics*: one reduction over all gradients, half types in float32; a norm whose squares overflow is computed again, scaled.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([30.0, 40.0])
    >>> clip_gradients((p for p in [w]), max_norm=5.0)["grad_norm_before"], w.grad
    (50.0, tensor([3., 4.]))
    """
    if max_norm is None and max_value is None:
        max_norm = active().gradient.default_max_norm
    norm_type = float(norm_type)
    gradients = gradients_of(parameters)
    before = joined_norm(gradients, norm_type)
    norm = _apply_nonfinite_policy(gradients, before, "clip_gradients")
    clipped = norm is not before and math.isfinite(norm) and not math.isfinite(before)
    if max_value is not None:
        outcome = clip_by_value_(gradients, max_value, norm=norm)
        clipped |= outcome.clipped
        norm = joined_norm(gradients, norm_type) if outcome.clipped else norm
    if max_norm is not None:
        outcome = clip_by_global_norm_(gradients, max_norm, norm_type, norm=norm)
        clipped |= outcome.clipped
        norm = outcome.norm_after
    return {"grad_norm_before": before, "grad_norm_after": norm, "num_params_with_grad": len(gradients), "clipped": clipped}


def check_gradients(model: Parameters, raise_on_nan: bool = True) -> dict[str, Any]:
    """Count the NaN and infinite elements of the gradients, and name the parameters they are in.

    Args:
        model: a module (names are its own), or parameters (named by position).
        raise_on_nan: whether to raise if there is any NaN or inf.

    Returns:
        `has_nan`, `has_inf`, `num_nan`, `num_inf` (elements; of sharded gradients this process's), `params_affected` (names).

    Raises:
        NumericalError: something is not finite and `raise_on_nan` holds; the message names the parameters.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1); layer.weight.grad = torch.tensor([[float("nan"), 1.0]])
    >>> check_gradients(layer, raise_on_nan=False)
    {'has_nan': True, 'has_inf': False, 'num_nan': 1, 'num_inf': 0, 'params_affected': ['weight']}
    """
    named = list(model.named_parameters()) if isinstance(model, nn.Module) else [(str(i), p) for i, p in enumerate(parameters_of(model))]
    with_gradient = [(name, p.grad) for name, p in named if p.grad is not None]
    num_nan, num_inf, affected = 0, 0, []
    has_nan = has_inf = False
    # one norm over everything decides; only a bad one is looked into, tensor by tensor
    if not math.isfinite(joined_norm([g for _, g in with_gradient], math.inf)):
        for (name, gradient), norm in zip(with_gradient, joined_norms([g for _, g in with_gradient], math.inf), strict=True):
            if not math.isfinite(norm):
                values = dense_values(gradient)
                num_nan, num_inf = num_nan + int(values.isnan().sum()), num_inf + int(values.isinf().sum())
                has_nan, has_inf = has_nan or math.isnan(norm), has_inf or math.isinf(norm) or bool(values.isinf().any())
                affected.append(name)
    result = {"has_nan": has_nan, "has_inf": has_inf, "num_nan": num_nan, "num_inf": num_inf, "params_affected": affected}
    if raise_on_nan and affected:
        raise NumericalError(f"check_gradients: {num_nan} NaN and {num_inf} infinite gradient elements in {', '.join(affected)}; skip this step")
    return result


# One history per run: the run is recognised by its first parameter, and forgotten with it.
_histories: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _history_of(parameters: list[Tensor]) -> GradientHistory:
    history: GradientHistory | None = _histories.get(parameters[0])  # type: ignore[no-untyped-call]
    if history is None:
        history = _histories[parameters[0]] = GradientHistory(1000)
    return history


def adaptive_gradient_clipping(
    parameters: Parameters,
    percentile: float = 95.0,
    *,
    zscore: float | None = None,
    history: GradientHistory | None = None,
    warmup: int = 20,
    max_norm: float | None = None,
) -> dict[str, Any]:
    """Clip the global norm at a percentile (or z-score) of this run's own past norms.

    Args:
        parameters: a module, a list or a generator.
        percentile: 0 to 100, of the recorded global norms.
        zscore: if given, the threshold is mean + zscore * std of the recorded norms instead.
        history: where norms are recorded; by default one that belongs to the first of the parameters and lives as long as it does.
        warmup: steps recorded before the first clipping.
        max_norm: a ceiling that holds from the first step on.

    Returns:
        `threshold` (inf during warm-up), `max_norm` and `mean_norm` (over this step's gradient tensors), `percentile`, `skipped` and `reason`
        (why nothing was done, else ""), `grad_norm_before`, `grad_norm_after`, `clipped`.

    Raises:
        UsageError: percentile is not within 0 to 100.

    *Numerics*: a non-finite norm is neither recorded nor used as a factor. The audited form compares each step's largest tensor with that
    same step's percentile: it shrinks healthy gradients always, and when all explode so does its threshold.

    *Source*: Seetharaman et al., AutoClip: adaptive gradient clipping for source separation networks, 2020.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> for size in [1.0] * 30 + [1000.0]:
    ...     w.grad = torch.tensor([size]); outcome = adaptive_gradient_clipping([w])
    >>> outcome["threshold"], round(w.grad.item(), 3)
    (1.0, 1.0)
    """
    if not 0 <= percentile <= 100:
        raise UsageError(f"adaptive_gradient_clipping: percentile must be within 0 and 100; got {percentile}")
    listed = parameters_of(parameters)
    gradients = gradients_of(listed)
    nothing = {"threshold": math.inf, "max_norm": 0.0, "mean_norm": 0.0, "percentile": percentile, "skipped": True, "reason": "no gradients"}
    if not gradients:
        return {**nothing, "grad_norm_before": 0.0, "grad_norm_after": 0.0, "clipped": False}
    history = _history_of(listed) if history is None else history
    norms = joined_norms(gradients)
    before = joined_norm(gradients)
    ready = len(history) >= warmup
    threshold = (history.percentile(percentile) if zscore is None else history.zscore_threshold(zscore)) if ready else math.inf
    if max_norm is not None:
        threshold = min(threshold, max_norm)
    history.record(before)
    result = {**nothing, "threshold": threshold, "max_norm": max(norms, key=_nan_first), "mean_norm": sum(norms) / len(norms), "reason": ""}
    if not math.isfinite(before):
        return {**result, "reason": f"gradient norm is {before}", "grad_norm_before": before, "grad_norm_after": before, "clipped": False}
    if threshold == math.inf or threshold <= 0:
        reason = f"history holds {len(history)} of {warmup} steps" if not ready else "all gradients so far were zero"
        return {**result, "reason": reason, "grad_norm_before": before, "grad_norm_after": before, "clipped": False}
    outcome = clip_by_global_norm_(gradients, threshold, norm=before)
    return {**result, "skipped": False, "grad_norm_before": before, "grad_norm_after": outcome.norm_after, "clipped": outcome.clipped}


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def adaptive_clip(parameters: Parameters, percentile: float = 95.0) -> dict[str, Any]:
    """`adaptive_gradient_clipping` under the second founding document's name.

    >>> import torch
    >>> adaptive_clip([torch.nn.Parameter(torch.zeros(1))])["reason"]
    'no gradients'
    """
    return adaptive_gradient_clipping(parameters, percentile)


def agc(parameters: Parameters, clipping: float = 0.01, eps: float = 1e-3) -> dict[str, Any]:
    """Adaptive gradient clipping: no unit's gradient exceeds `clipping` times the norm of its weights, in place.

    Args:
        parameters: a module, a list or a generator.
        clipping: largest ratio of a unit's gradient norm to its weight norm.
        eps: floor of the weight norm, so that units at zero can learn.

    Returns:
        `grad_norm_before`, `grad_norm_after`, `num_params_with_grad`, `clipped`.

    Raises:
        UsageError: an argument is not positive.

    *Source*: Brock et al. 2021, High-performance large-scale image recognition without normalization, equation 3.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2, 2)); w.grad = torch.tensor([[100.0, 0.0], [0.001, 0.0]])
    >>> agc([w])["clipped"], w.grad
    (True, tensor([[0.0141, 0.0000],
            [0.0010, 0.0000]]))
    """
    listed = parameters_of(parameters)
    gradients = gradients_of(listed)
    before = joined_norm(gradients)
    outcome = clip_adaptively_(listed, clipping, eps, norm=before)
    return {
        "grad_norm_before": before,
        "grad_norm_after": joined_norm(gradients),
        "num_params_with_grad": len(gradients),
        "clipped": outcome.clipped,
    }


def normalize_gradients(parameters: Parameters, norm: float = 1.0, per_parameter: bool = False) -> dict[str, Any]:
    """Scale the gradients so that their global norm (or each one's own) is `norm`, in place; zero gradients stay zero.

    Args:
        parameters: a module, a list or a generator.
        norm: the norm they get, larger or smaller than before.
        per_parameter: each gradient tensor by itself, so that layers of very different gradients learn alike.

    Returns:
        `grad_norm_before`, `grad_norm_after`, `num_params_with_grad`, `clipped` (whether anything was changed). Gradients that are not
        finite are left alone.

    Raises:
        UsageError: norm is not positive.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([3e-30, 4e-30])
    >>> normalize_gradients([w])["clipped"], w.grad
    (True, tensor([0.6000, 0.8000]))
    """
    if not norm > 0:
        raise UsageError(f"normalize_gradients: norm must be positive; got {norm}")
    gradients = gradients_of(parameters)
    before = joined_norm(gradients)
    changed = False
    for group in [[g] for g in gradients] if per_parameter else [gradients]:
        size = math.hypot(*joined_norms(group))  # each scaled by itself: tiny squares do not vanish
        if math.isfinite(size) and size > 0 and size != norm:
            _scale_exactly(group, norm, size)
            changed = True
    return {"grad_norm_before": before, "grad_norm_after": joined_norm(gradients), "num_params_with_grad": len(gradients), "clipped": changed}


def _scale_exactly(gradients: list[Tensor], norm: float, size: float) -> None:
    """Multiply by norm / size in two steps, neither of which overflows or vanishes in a half type."""
    factor = norm / size
    root = math.sqrt(factor)
    smallest = min(float(torch.finfo(g.dtype).max) for g in gradients)
    if 1 / smallest < factor < smallest:
        scale_(gradients, factor)
    else:
        scale_(gradients, root)
        scale_(gradients, root)


class GradientManager:
    """The audit's gradient utilities under their names; each is the function of this module."""

    @staticmethod
    def clip_gradients(
        parameters: Parameters, max_norm: float | None = None, max_value: float | None = None, norm_type: float | Literal["inf"] = 2.0
    ) -> dict[str, Any]:
        """See `clip_gradients`."""
        return clip_gradients(parameters, max_norm, max_value, norm_type)

    @staticmethod
    def check_gradients(model: Parameters, raise_on_nan: bool = True) -> dict[str, Any]:
        """See `check_gradients`."""
        return check_gradients(model, raise_on_nan)

    @staticmethod
    def adaptive_gradient_clipping(parameters: Parameters, percentile: float = 95.0) -> dict[str, Any]:
        """See `adaptive_gradient_clipping`."""
        return adaptive_gradient_clipping(parameters, percentile)
