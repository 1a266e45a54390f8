"""Losses that are finite, in value and in gradient, wherever their inputs are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_drift.errors import UsageError
from latent_drift.numerics import gaussian
from latent_drift.numerics.bounds import clamp, soft_clamp
from latent_drift.numerics.dtypes import accumulation_dtype, require_real
from latent_drift.numerics.gaussian import saturating_cast
from latent_drift.numerics.reductions import log_softmax
from latent_drift.stability.settings import settings_for

Reduction = Literal["none", "mean", "sum", "batchmean"]


def _reduced(value: Tensor, reduction: str, dtype: torch.dtype, function: str, allowed: tuple[str, ...] = ("none", "mean", "sum")) -> Tensor:
    """`value`, in its wide dtype, reduced there and brought back to `dtype` without overflow."""
    if reduction not in allowed:
        raise UsageError(f"{function}: reduction must be one of {', '.join(allowed)}; got {reduction!r}")
    if reduction == "mean":
        value = value.mean() if value.numel() else value.sum()
    elif reduction == "sum":
        value = value.sum()
    elif reduction == "batchmean":
        value = value.sum(-1) if value.dim() else value
        value = value.mean() if value.numel() else value.sum()
    return saturating_cast(value, dtype)


def _require(function: str, **arguments: Tensor | float) -> None:
    """Refuse, in the name of `function`, arguments that are no dense real tensors (numbers are fine where a default is one)."""
    for name, value in arguments.items():
        if not (isinstance(value, (int, float)) and name.startswith("prior")):
            require_real(value, function, name)


def stable_cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean", ignore_index: int = -100, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy from logits, finite for masked (-inf) and overflowing (+inf) logits.

    Args:
        logits: (batch, classes, ...) or (classes,).
        targets: class indices (batch, ...), or probabilities of the shape of `logits`.
        reduction: "mean" (over targets that count), "sum" or "none".
        ignore_index: targets with this value do not count.
        label_smoothing: 0 by default; it changes results and is no means of stability.

    Returns:
        The loss in nats, in the dtype of `logits`; 0 with a graph for an empty batch.

    Raises:
        UsageError: `logits` is complex, integer or not strided, or the reduction is unknown.

    *Numerics*: torch's cross entropy where that is finite. A target whose logit is -inf (or loses to +inf) costs what the
    config says (`losses.nonfinite_elements`): bound (1/1024 of the dtype's range, gradient 0: no step can reach it), omit, or leave. Every finite
    logit keeps its gradient, however bad: clamping log-probabilities at -100 takes it exactly from the worst errors. NaN is not hidden.

    >>> import torch
    >>> stable_cross_entropy(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    tensor(1000.)
    >>> stable_cross_entropy(torch.tensor([[float("-inf"), 0.0]]), torch.tensor([0])).isfinite().item()
    True
    """
    _require("stable_cross_entropy", logits=logits)
    policy = settings_for(logits, "stable_cross_entropy").nonfinite_losses
    dtype, wide = logits.dtype, accumulation_dtype(logits.dtype)
    dim = 1 if logits.dim() > 1 else 0
    classes = logits.shape[dim] if logits.dim() else 0
    log_p = log_softmax(logits.to(wide), dim)
    worst = torch.finfo(dtype).min / 1024
    if policy != "leave":
        log_p = torch.where(log_p == -torch.inf, torch.full_like(log_p, worst), log_p)
    if targets.is_floating_point():
        smooth = targets.to(wide) * (1 - label_smoothing) + label_smoothing / max(classes, 1)
        terms = torch.where(smooth == 0, torch.zeros_like(log_p), smooth * log_p)  # 0 * -inf counts nothing
        element = -terms.sum(dim)
        counted = torch.ones_like(element, dtype=torch.bool)
    else:
        index = targets.long()
        counted = index != ignore_index
        safe = torch.where(counted, index, torch.zeros_like(index))
        chosen = log_p.gather(dim, safe.unsqueeze(dim)).squeeze(dim) if log_p.numel() else log_p.sum(dim)
        element = -chosen
        if label_smoothing:
            element = (1 - label_smoothing) * element - label_smoothing * log_p.mean(dim)
        element = torch.where(counted, element, torch.zeros_like(element))
    if policy == "omit":
        lost = element.detach() >= -worst * (1 - label_smoothing) * 0.5
        counted = counted & ~lost
        element = torch.where(lost, torch.zeros_like(element), element)
    if reduction == "mean":
        element, reduction = element.sum() / counted.sum().clamp(min=1), "none"
    if policy == "leave":
        return (element.sum() if reduction == "sum" else element).to(dtype)
    return _reduced(element, reduction, dtype, "stable_cross_entropy")


def stable_kl_divergence(
    mean: Tensor,
    logvar: Tensor,
    prior_mean: float | Tensor = 0.0,
    prior_logvar: float | Tensor = 0.0,
    eps: float | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(prior_mean, exp(prior_logvar))) in nats: summed over the last axis, averaged over the others.

    Args:
        mean, logvar: (..., latent).
        prior_mean, prior_logvar: numbers, or tensors that broadcast.
        eps: accepted because published code passes it, and not used: an epsilon added to a variance biases the divergence (-0.198
            for two equal Gaussians of log-variance -18 with 1e-8, -0.49 with 1e-6).
        reduction: "batchmean", or "none" (elementwise), "sum", "mean" (over elements).

    Raises:
        UsageError: an input is complex, integer or not strided, or the reduction is unknown.

    *Numerics*: exactly 0 for equal distributions, never negative, finite with its gradients for log-variances in +-80 in every dtype; summed in
    float32 for the half types. See `latent_drift.numerics.gaussian.kl_divergence`.

    >>> import torch
    >>> logvar = torch.full((3, 2), -18.0)
    >>> stable_kl_divergence(torch.ones(3, 2), logvar, 1.0, -18.0).item()
    0.0
    """
    _require("stable_kl_divergence", mean=mean, logvar=logvar, prior_mean=prior_mean, prior_logvar=prior_logvar)
    value = gaussian.kl_divergence(mean, logvar, prior_mean, prior_logvar, dtype=accumulation_dtype(torch.promote_types(mean.dtype, logvar.dtype)))
    return _reduced(value, reduction, mean.dtype, "stable_kl_divergence", ("batchmean", "none", "mean", "sum"))


def stable_binary_cross_entropy(pred: Tensor, target: Tensor, eps: float | None = None, reduction: str = "mean") -> Tensor:
    """Binary cross entropy from probabilities, finite at 0 and 1 with its strongest gradient there.

    Args:
        pred: probabilities, any shape. If you have logits, use `F.binary_cross_entropy_with_logits`, which loses nothing.
        target: labels or probabilities that broadcast.
        eps: distance kept from 0 and 1; the config's `log_floor` by default, and from 1 at least the dtype's spacing (1 - 1e-4 is 1 in float16).
        reduction: "mean", "sum" or "none".

    Raises:
        UsageError: `pred` is complex, integer or not strided, has an element outside [0, 1] by more than rounding, or the reduction is unknown.

    *Numerics*: log p and log1p(-p): no digit of a small p is lost. Inside (0, 1) exact to a few ulp; the gradient passes the bounds.

    >>> import torch
    >>> p = torch.tensor([1.0, 0.0], dtype=torch.float16, requires_grad=True)
    >>> loss = stable_binary_cross_entropy(p, torch.tensor([0.0, 1.0], dtype=torch.float16)); loss.backward()
    >>> loss.isfinite().item(), p.grad.isfinite().all().item()
    (True, True)
    """
    labels = isinstance(target, Tensor) and target.layout is torch.strided and not (target.is_floating_point() or target.is_complex())
    _require("stable_binary_cross_entropy", pred=pred, **({} if labels else {"target": target}))
    config = settings_for(pred, "stable_binary_cross_entropy")
    info = torch.finfo(pred.dtype)
    low = max(config.log_floor if eps is None else eps, info.smallest_normal)
    high = min(1.0 - info.eps / 2, 1.0 - low)
    wide = accumulation_dtype(pred.dtype)
    p, t = pred.to(wide), target.to(wide)
    positive = torch.log(clamp(p, low, None))
    negative = torch.log1p(-clamp(p, None, high))
    return _reduced(-(t * positive + (1 - t) * negative), reduction, pred.dtype, "stable_binary_cross_entropy")


def gaussian_nll(mean: Tensor, target: Tensor, logvar: Tensor, full: bool = False, reduction: str = "mean") -> Tensor:
    """-log N(target; mean, exp(logvar)) in nats, from the log-variance.

    Args:
        mean, target, logvar: tensors that broadcast.
        full: whether log(2 pi)/2 is part of it.
        reduction: "mean", "sum" or "none".

    Raises:
        UsageError: an input is complex, integer or not strided, or the reduction is unknown.

    *Numerics*: no floor on the variance, so no bias and no dead gradient (`F.gaussian_nll_loss` has none below 1e-6);
    finite for log-variances in +-80.

    >>> import torch
    >>> gaussian_nll(torch.zeros(2), torch.zeros(2), torch.full((2,), -20.0)).item()
    -10.0
    """
    _require("gaussian_nll", mean=mean, target=target, logvar=logvar)
    value = gaussian.negative_log_likelihood(mean, target, logvar, full, dtype=accumulation_dtype(torch.promote_types(mean.dtype, logvar.dtype)))
    return _reduced(value, reduction, mean.dtype, "gaussian_nll")


def stable_vae_loss(recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, beta: float = 1.0, likelihood: str = "auto") -> Tensor:
    """The negative ELBO of a VAE with a standard-normal prior, averaged over the batch, in nats.

    Args:
        recon_x: reconstruction (batch, ...): probabilities, logits or means.
        x: data of the same shape.
        mu, logvar: (batch, latent) of the posterior.
        beta: weight of the KL.
        likelihood: "bernoulli" (probabilities), "bernoulli_logits", "gaussian" (half squared error), or "auto": bernoulli where `recon_x` and `x` lie
            within [0, 1] (one read from the device), else gaussian.

    Raises:
        UsageError: shapes differ or the likelihood is unknown.

    *Numerics*: the log-variance is bounded softly within the config's `log_variance_min` and `_max` so that its
    gradient returns; the sum is formed in float32.

    >>> import torch
    >>> x = torch.full((2, 3), 0.5)
    >>> stable_vae_loss(x, x, torch.zeros(2, 4), torch.zeros(2, 4), likelihood="gaussian").item()
    0.0
    """
    _require("stable_vae_loss", recon_x=recon_x, x=x, mu=mu, logvar=logvar)
    if recon_x.shape != x.shape:
        raise UsageError(f"stable_vae_loss: recon_x and x must have one shape; got {tuple(recon_x.shape)} and {tuple(x.shape)}")
    config = settings_for(logvar, "stable_vae_loss")
    dtype, wide = recon_x.dtype, accumulation_dtype(recon_x.dtype)
    batch = max(x.shape[0] if x.dim() else 1, 1)
    if likelihood == "auto":
        inside = ((recon_x >= 0) & (recon_x <= 1) & (x >= 0) & (x <= 1)).all()
        likelihood = "bernoulli" if bool(inside) else "gaussian"
    if likelihood == "bernoulli":
        reconstruction = stable_binary_cross_entropy(
            recon_x.to(wide), x.to(wide), reduction="sum", eps=settings_for(recon_x, "stable_vae_loss").log_floor
        )
    elif likelihood == "bernoulli_logits":
        reconstruction = F.binary_cross_entropy_with_logits(recon_x.to(wide), x.to(wide), reduction="sum")
    elif likelihood == "gaussian":
        difference = recon_x.to(wide) - x.to(wide)
        reconstruction = (0.5 * difference * difference).sum()  # square() would double the largest difference in its gradient: inf
    else:
        raise UsageError(f"stable_vae_loss: likelihood must be auto, bernoulli, bernoulli_logits or gaussian; got {likelihood!r}")
    bounded = soft_clamp(logvar, config.logvar_min, config.logvar_max)
    kl = gaussian.kl_divergence(mu, bounded, dtype=accumulation_dtype(mu.dtype)).sum()
    return saturating_cast((reconstruction + beta * kl) / batch, dtype)


class StableLosses:
    """The audit's losses under their names; each is the function of this module."""

    @staticmethod
    def stable_cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """See `stable_cross_entropy`."""
        return stable_cross_entropy(logits, targets, reduction)

    @staticmethod
    def stable_kl_divergence(mean: Tensor, logvar: Tensor, prior_mean: float = 0.0, prior_logvar: float = 0.0, eps: float | None = None) -> Tensor:
        """See `stable_kl_divergence`."""
        return stable_kl_divergence(mean, logvar, prior_mean, prior_logvar, eps)

    @staticmethod
    def stable_binary_cross_entropy(pred: Tensor, target: Tensor, eps: float | None = None) -> Tensor:
        """See `stable_binary_cross_entropy`."""
        return stable_binary_cross_entropy(pred, target, eps)
