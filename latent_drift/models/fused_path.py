"""The noisy path of the log classifier's latent SDE as one function: the steps run in order, the weights' gradients are taken at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from latent_drift.models.plain_layers import can_fuse, is_unobserved, linear_parameters

if TYPE_CHECKING:
    from latent_drift.models.raccoon_dynamics import RaccoonDynamics

_silu_backward = torch.ops.aten.silu_backward.default

HALF_PI: Final = 1.5707964
"""pi / 2, rounded up in float32, so that atan(-inf) + pi / 2 is not negative."""

StepByStep = Callable[[Tensor], Tensor]
"""z0 -> z at the end of the path, with the same noise: differentiable any number of times."""


def fused_path(
    dynamics: RaccoonDynamics, kind: type[RaccoonDynamics], z: Tensor, times: Sequence[float], noises: Sequence[Tensor], by_step: StepByStep
) -> Tensor | None:
    """Euler-Maruyama's z (B, dim) at the last of `times`; None where `by_step` must do it.

    Args:
        kind: the class that `dynamics` must have.
        noises: standard normal, (B, dim) a step.
        by_step: for second derivatives.

    *Numerics*: value and gradients agree with `by_step` to rounding: the two networks share the product of their first layers, and gradients of
    weights are summed over steps and rows at once.
    """
    if not is_unobserved(dynamics, kind) or dynamics.legacy_compat or dynamics.sigma_max == 0.0:
        return None
    drift, diffusion = linear_parameters(dynamics.drift_net), linear_parameters(dynamics.log_diffusion_net)
    if drift is None or diffusion is None or len(drift) != 6 or len(diffusion) != 4:
        return None
    parameters = [*drift, *diffusion]
    lowest, span = dynamics._ranges.get(z.dtype, (0.0, 0.0))
    if span == 0.0 or not can_fuse(z, parameters) or drift[0].shape[1] != z.shape[1] + 1 or diffusion[0].shape[1] != z.shape[1] + 1:
        return None
    if not torch.is_grad_enabled():
        return _evaluate(z, parameters, times, noises, lowest, span)[0]
    result: Tensor = _Path.apply((times, noises, lowest, span), by_step, z, *parameters)  # type: ignore[no-untyped-call]
    return result


def _evaluate(
    z: Tensor, parameters: Sequence[Tensor], times: Sequence[float], noises: Sequence[Tensor], lowest: float, span: float
) -> tuple[Tensor, Tensor, list[tuple[Tensor, ...]]]:
    """The end of the path, the first layers of both networks as one, and what each step leaves for the way back."""
    w1, b1, w2, b2, w3, b3, v1, c1, v2, c2 = parameters
    first, bias = torch.cat([w1, v1]), torch.cat([b1, c1])
    middle = math.log(lowest) + 0.5 * span
    left: list[tuple[Tensor, ...]] = []
    for i, noise in enumerate(noises):
        dt = times[i + 1] - times[i]
        inputs = torch.cat([z, z.new_full((z.shape[0], 1), times[i])], dim=1)
        hidden = F.linear(inputs, first, bias)
        out = F.silu(hidden)
        for_drift, for_diffusion = out.split([w1.shape[0], v1.shape[0]], dim=1)
        second = F.linear(for_drift, w2, b2)
        second_out = F.silu(second)
        offset = F.linear(for_diffusion, v2, c2) - middle
        diffusion = torch.atan(offset).add_(HALF_PI).mul_(span / math.pi).exp_().mul_(lowest)
        z = torch.add(z, F.linear(second_out, w3, b3), alpha=dt).addcmul_(diffusion, noise, value=math.sqrt(dt))
        left.append((inputs, hidden, out, second, second_out, offset, diffusion))
    return z, first, left


class _Path(Function):
    @staticmethod
    def forward(ctx: Any, path: tuple[Any, ...], by_step: StepByStep, z: Tensor, *parameters: Tensor) -> Tensor:
        end, *ctx.left = _evaluate(z, parameters, *path)
        ctx.path, ctx.by_step = path, by_step
        ctx.save_for_backward(z, *parameters)
        return end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are those of the path taken step by step
            given = (z, *parameters)
            wanted = [tensor for tensor in given if tensor.requires_grad]
            found = iter(torch.autograd.grad(ctx.by_step(z), wanted, grads, create_graph=True, allow_unused=True))
            return None, None, *(next(found) if tensor.requires_grad else None for tensor in given)
        return None, None, *_gradients(grads[0], parameters, ctx.path, *ctx.left)


def _gradients(grad: Tensor, parameters: list[Tensor], path: tuple[Any, ...], first: Tensor, left: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Of z and the parameters."""
    w1, _, w2, _, w3, _, v1, _, v2, _ = parameters
    times, noises, _, span = path
    of_z = first.narrow(1, 0, grad.shape[1])
    by_hidden, by_second, by_drift, by_raw = [], [], [], []
    for i in reversed(range(len(noises))):
        _, hidden, _, second, _, offset, diffusion = left[i]
        dt = times[i + 1] - times[i]
        # d diffusion / d raw = diffusion (span / pi) / (1 + offset^2)
        slope = (diffusion * noises[i]).div_(offset.square().add_(1.0)).mul_(span / math.pi * math.sqrt(dt))
        by_drift.append(grad * dt)
        by_raw.append(slope.mul_(grad))
        by_second.append(_silu_backward(torch.mm(by_drift[-1], w3), second))
        by_out = torch.cat([torch.mm(by_second[-1], w2), torch.mm(by_raw[-1], v2)], dim=1)
        by_hidden.append(_silu_backward(by_out, hidden))
        grad = torch.addmm(grad, by_hidden[-1], of_z)
    inputs, _, out, _, second_out, _, _ = zip(*reversed(left), strict=True)
    width = w1.shape[0]
    behind = torch.cat(out)
    found: list[Tensor] = []
    for by, of in (
        (by_hidden, torch.cat(inputs)),
        (by_second, behind.narrow(1, 0, width)),
        (by_drift, torch.cat(second_out)),
        (by_raw, behind.narrow(1, width, v1.shape[0])),
    ):
        rows = torch.cat(by)
        found += (torch.mm(rows.mT, of), rows.sum(dim=0))
    weight, bias, *others = found
    sizes = [width, v1.shape[0]]
    (by_w1, by_v1), (by_b1, by_c1) = weight.split(sizes), bias.split(sizes)
    return [grad, by_w1, by_b1, *others[:4], by_v1, by_c1, *others[4:]]
