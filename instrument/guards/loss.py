"""Loss functions whose element is NaN or Inf (NS604).

Hazard: cross_entropy with a logit of inf or a target on a class masked with -inf, a squared error that overflows, ctc without an alignment: one
element makes the whole loss non-finite, and through it every gradient.
Forward (`losses.nonfinite_elements`): that element is bounded (a log-likelihood at the log of the smallest normal number, a distance at the root
of the largest), or left out of the reduction. All other elements are torch's own, and a finite loss is not touched.
Backward: 0 for that element, through everything it was made of.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from instrument.guards.base import AbstractGuard, Function, Spelling, spelled
from instrument.guards.half_precision import in_float32
from instrument.guards.hand_over import judging
from instrument.guards.raising import argument
from instrument.guards.result import total
from instrument.locate.origin import undetached
from instrument.runtime import RUNTIME, is_plain, is_plain_on_cpu
from instrument.tensors import is_bad
from latent_drift.numerics.finite import is_finite

# name -> (harmless input, how the arguments after it are called where they are tensors of the input's shape)
_CLASS_LOSSES = ("cross_entropy", "nll_loss")
_LIKELIHOODS = {
    "binary_cross_entropy": 0.5,
    "binary_cross_entropy_with_logits": 0.0,
    "kl_div": 0.0,
    "poisson_nll_loss": 0.0,
    "gaussian_nll_loss": 0.0,
}
_DISTANCES = {"mse_loss": 0.0, "smooth_l1_loss": 0.0, "huber_loss": 0.0, "l1_loss": 0.0}
_OPS = (*_CLASS_LOSSES, *_LIKELIHOODS, *_DISTANCES, "ctc_loss")


class LossGuard(AbstractGuard):
    """The losses of torch.nn.functional that are computed in one piece; the loss modules call these."""

    code: ClassVar[str] = "NS604"

    def spellings(self) -> list[Spelling]:
        return [s for op in _OPS for s in spelled(op, (functional, op))]

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        op = spelling.op

        def judge(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_plain_on_cpu(out) or not out.numel() or math.isfinite(total(out) if out.dim() else out.item()):
                return out
            return _mended(original, op, out, args, kwargs)

        return judging(original, spelling, judge)


def _mended(original: Function, op: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run = RUNTIME.run
    rule = run.config.losses.nonfinite_elements
    x = argument(args, kwargs, 0, "input", "log_probs")
    inputs = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
    site = run.site()
    if run.allows(op, site) or (op == "ctc_loss" and out.dim() and not out.requires_grad):
        return out  # sequence by sequence, and to be looked at only: infinity says which cannot be aligned
    wide = in_float32(op, original, out, args, kwargs, "NS604")
    if wide is not None:
        return wide
    finite = all(is_finite(a) for a in inputs)
    if finite:
        run.search.born("NS604", op, message=f"{op} of finite arguments is not finite", x=x, site=site)
    if not run.policy.act or rule == "leave" or not is_plain(x):
        return out
    result = _without_alignment(original, args, kwargs) if op == "ctc_loss" else _reduced(original, op, rule, args, kwargs)
    if result is None or not is_finite(result):
        return out
    said = {"bound": "bounded", "omit": "left out"}[rule] if op != "ctc_loss" else "left out (zero_infinity)"
    run.note("NS604", "bounded", op, site=site, x=x, message=f"elements of {op} are not finite; they were {said}, with gradient 0", fired=finite)
    # A logit of -inf is a mask; NaN, or +inf among logits, is none.
    if any(not is_finite(a) and (a is not x or bool((torch.isnan(a.detach()) | torch.isposinf(a.detach())).any())) for a in inputs):
        for a in inputs:
            if is_bad(a) and not a.requires_grad and undetached(a) is None:
                run.search.came_in(op, a, site)
        run.search.blame(inputs)  # the loss would be NaN, and once it is mended nothing else asks where that was born
    return result


def _without_alignment(original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """torch's own answer for sequences that no alignment fits: loss and gradient 0."""
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if given.get("zero_infinity"):
        return None
    result: Tensor = original(**{**given, "zero_infinity": True})
    return result


def _reduced(original: Function, op: str, rule: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The loss with its bad elements replaced; None where the arguments are of a form that cannot be taken apart."""
    if len(args) > 2:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        args, kwargs = (), dict(given)
    reduction = kwargs.get("reduction", "mean")
    if kwargs.get("size_average") is not None or kwargs.get("reduce") is not None:
        return None  # the settings of long ago
    x, target = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "target")
    options = {k: v for k, v in kwargs.items() if k not in ("input", "target", "reduction")}
    if not isinstance(x, Tensor) or not isinstance(target, Tensor):
        return None

    for name in ("weight", "pos_weight"):
        weight = options.get(name)
        if isinstance(weight, Tensor) and not is_finite(weight):
            # A weight by the inverse frequency of a class that does not occur: what it would weigh is not there.
            options[name] = torch.where(torch.isfinite(weight), weight, torch.ones((), dtype=weight.dtype))
    elements = original(x.detach(), target.detach(), reduction="none", **options)
    bad = ~torch.isfinite(elements)
    if op in _CLASS_LOSSES:
        class_dim = 0 if x.dim() == 1 else 1
        if bad.dim() != x.dim() - 1:
            return None
        # A log-likelihood is only as good as the whole row of logits that it was normalised over.
        bad = bad | ~torch.isfinite(x.detach()).any(dim=class_dim)
        safe_x = torch.where(bad.unsqueeze(class_dim), torch.zeros((), dtype=x.dtype), x)
        safe_target = target
        if target.is_floating_point():
            safe_target = torch.where(bad.unsqueeze(class_dim), torch.full((), 1.0 / x.shape[class_dim], dtype=target.dtype), target)
    else:
        if bad.shape != x.shape or target.shape != x.shape:
            return None
        harmless = {**_LIKELIHOODS, **_DISTANCES}[op]
        safe_x = torch.where(bad, torch.full((), harmless, dtype=x.dtype), x)
        safe_target = torch.where(bad, torch.zeros((), dtype=target.dtype), target) if target.is_floating_point() else target
        if isinstance(options.get("var"), Tensor):
            var = options["var"]
            var = var.unsqueeze(-1) if var.dim() == x.dim() - 1 and x.shape[:-1] == var.shape else var
            options["var"] = torch.where(bad, torch.ones((), dtype=var.dtype), var)
    kept = original(safe_x, safe_target, reduction="none", **options)
    ceiling = math.sqrt(torch.finfo(kept.dtype).max) if op in _DISTANCES else -math.log(torch.finfo(kept.dtype).tiny)
    fill = ceiling if rule == "bound" else 0.0
    mended = torch.where(bad, torch.full((), fill, dtype=kept.dtype), kept)
    if op == "kl_div" and not options.get("log_target"):
        mended = torch.where(bad & (target == 0), torch.zeros((), dtype=kept.dtype), mended)  # 0 log 0 - 0 x: what has no mass adds nothing
    if reduction == "none":
        return mended
    total = _sum(mended)
    if reduction == "sum":
        return _narrowed(total, kept.dtype)
    if reduction == "batchmean":
        return _narrowed(total / x.shape[0], kept.dtype)
    counted = torch.ones_like(elements) if rule == "bound" else (~bad).to(elements.dtype)
    if op in _CLASS_LOSSES and not target.is_floating_point():
        ignored = target == options.get("ignore_index", -100)
        weight = options.get("weight")
        shares = torch.ones_like(elements) if weight is None else weight.detach()[target.masked_fill(ignored, 0)]
        counted = counted * shares.masked_fill(ignored, 0.0)
    return _narrowed(total / counted.sum().clamp(min=torch.finfo(kept.dtype).tiny), kept.dtype)


def _sum(elements: Tensor) -> Tensor:
    """The sum of finite elements; in float64 where it overflows their own dtype, since a mean of them may not."""
    total = elements.sum()
    return total if math.isfinite(total.item()) else elements.double().sum()


def _narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Back in the dtype of the loss: near its largest number, where it is beyond. The gradient is that of the sum, whose elements are finite."""
    if value.dtype is dtype:
        return value
    excess = (value - torch.finfo(dtype).max * (1.0 - 1e-6)).clamp(min=0.0).detach()
    return (value - excess).to(dtype)
