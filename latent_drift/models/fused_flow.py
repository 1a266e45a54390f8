"""All coupling layers of a flow as one function: what depends on the layer before runs layer by layer, everything else at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from latent_drift.models.plain_layers import can_fuse, is_unobserved, linear_parameters
from latent_drift.numerics.bounds import is_within

if TYPE_CHECKING:
    from latent_drift.models.coupling_flow import CouplingLayer

_silu_backward = torch.ops.aten.silu_backward.default

LayerByLayer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, features) -> (y, log-determinant): the same map, differentiable any number of times."""


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What the backward pass takes from the forward pass. Layers are stacked in front, or entries of a list."""

    inputs: Tensor  # (layers, batch, dim + time_dim): what the first linear maps saw, masked x beside the features
    hidden: list[tuple[Tensor, Tensor]]  # before each SiLU
    hidden_out: list[tuple[Tensor, Tensor]]  # behind it
    growths: list[Tensor]  # x * exp(log_scale)
    factors: list[Tensor]  # exp(log_scale)
    tanh: Tensor  # (layers, batch, dim)
    gates: list[Tensor]  # (2 dim,)
    masks: list[Tensor]  # (dim,)


def fused_flow(
    layers: Sequence[CouplingLayer], x: Tensor, features: Tensor, kind: type[CouplingLayer], farthest: float, edge: float, by_layer: LayerByLayer
) -> tuple[Tensor, Tensor] | None:
    """y and log-determinant of `layers` in order at x (B, dim), features (B, time_dim); None where `by_layer` must do it.

    Args:
        kind: the class all layers must have.
        farthest: bound of what the networks see of x.
        edge: magnitude up to which soft_bound is the identity; a ratio beyond it leads to None.
        by_layer: for second derivatives.

    *Numerics*: y is that of `by_layer` bit for bit; log-determinant and gradients agree to rounding, the sums over layers and rows being taken in
    another order.
    """
    parameters: list[Tensor] = []
    for layer in layers:
        own = linear_parameters(layer.transform_net) if is_unobserved(layer, kind) else None
        if own is None or len(own) != 6 or layer.legacy_compat:
            return None
        parameters += own
    if not can_fuse(x, parameters) or features.requires_grad or features.dtype != x.dtype:
        return None
    if any(p.shape != first.shape for first, p in zip(parameters[:6] * len(layers), parameters, strict=True)):
        return None
    with torch.no_grad():
        evaluated = _evaluate(layers, x.detach(), features, parameters, farthest, edge)
    if evaluated is None or not torch.is_grad_enabled():
        return None if evaluated is None else evaluated[:2]
    result: tuple[Tensor, Tensor] = _Flow.apply(*evaluated, by_layer, features, x, *parameters)  # type: ignore[no-untyped-call]
    return result


def _evaluate(
    layers: Sequence[CouplingLayer], x: Tensor, features: Tensor, parameters: list[Tensor], farthest: float, edge: float
) -> tuple[Tensor, Tensor, _Evaluation] | None:
    depth, (batch, dim) = len(layers), x.shape
    inputs = x.new_empty(depth, batch, dim + features.shape[1])
    inputs[:, :, dim:] = features
    seen = inputs[:, :, :dim]
    tanhs, log_scales = [], []
    found = _Evaluation(inputs, [], [], [], [], x, [], [])
    for i, (layer, into, given) in enumerate(zip(layers, seen.unbind(), inputs.unbind(), strict=True)):
        w1, b1, w2, b2, w3, b3 = parameters[6 * i : 6 * i + 6]
        mask, gate = layer.mask, layer._gates()
        torch.mul(x, mask, out=into)
        first = F.linear(given, w1, b1)
        first_out = F.silu(first)
        second = F.linear(first_out, w2, b2)
        second_out = F.silu(second)
        ratio, shift = F.linear(second_out, w3, b3).mul_(gate).chunk(2, dim=1)
        tanh = torch.tanh(ratio)
        log_scale = tanh * layer.scale_range
        factor = torch.exp(log_scale)
        growth = x * factor
        x = growth + shift
        tanhs.append(tanh)
        log_scales.append(log_scale)
        found.hidden.append((first, second))
        found.hidden_out.append((first_out, second_out))
        found.growths.append(growth)
        found.factors.append(factor)
        found.gates.append(gate)
        found.masks.append(mask)
    tanh = torch.stack(tanhs)
    # Both bounds are the identity here, or this is not the place. What lies within rounding of an edge takes the long way, too.
    steepest, farthest = (1.0 - 1e-6) * math.tanh(edge), (1.0 - 1e-6) * farthest
    if not (is_within(tanh, -steepest, steepest) and is_within(seen, -farthest, farthest)):
        return None
    return x, torch.stack(log_scales).sum(dim=(0, 2)), replace(found, tanh=tanh)


class _Flow(Function):
    """The evaluated flow with its derivative: x and the networks' activations go back layer by layer, the weights' gradients in batches."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, log_det: Tensor, found: _Evaluation, by_layer: LayerByLayer, features: Tensor, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.found, ctx.by_layer = found, by_layer
        ctx.save_for_backward(x, features, *parameters)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, features, *parameters = ctx.saved_tensors
        gradients = (
            _differentiable(ctx.by_layer, x, features, parameters, grads) if torch.is_grad_enabled() else _gradients(ctx.found, grads, parameters)
        )
        return None, None, None, None, None, *gradients


def _gradients(found: _Evaluation, grads: tuple[Tensor, ...], parameters: list[Tensor]) -> list[Tensor]:
    """Of x and the parameters."""
    grad, of_log_det = grads[0], grads[1].unsqueeze(1)
    tanh = found.tanh
    dim = tanh.shape[2]
    gates = torch.stack(found.gates)[:, dim:].unsqueeze(1).expand_as(tanh)
    # log_scale's slope by the raw output: scale_range cancels against the gate's 1 / scale_range.
    slopes = torch.cat([torch.addcmul(gates, gates, tanh * tanh, value=-1.0), gates], dim=2).unbind()
    by_raw, by_second, by_first = [], [], []
    for i in reversed(range(len(slopes))):
        w1, _, w2, _, w3, _ = parameters[6 * i : 6 * i + 6]
        first, second = found.hidden[i]
        by_raw.append(torch.cat([torch.addcmul(of_log_det, grad, found.growths[i]), grad], dim=1).mul_(slopes[i]))
        by_second.append(_silu_backward(torch.mm(by_raw[-1], w3), second))
        by_first.append(_silu_backward(torch.mm(by_second[-1], w2), first))
        grad = (grad * found.factors[i]).addcmul_(torch.mm(by_first[-1], w1.narrow(1, 0, dim)), found.masks[i])
    by_layer: list[tuple[Tensor, ...]] = []
    first_outs, second_outs = zip(*found.hidden_out, strict=True)
    for by, of in ((by_first, found.inputs), (by_second, torch.stack(first_outs)), (by_raw, torch.stack(second_outs))):
        stacked = torch.stack(by[::-1])
        by_layer += (torch.bmm(stacked.mT, of).unbind(), stacked.sum(dim=1).unbind())
    return [grad, *(gradient for layer in zip(*by_layer, strict=True) for gradient in layer)]


def _differentiable(by_layer: LayerByLayer, x: Tensor, features: Tensor, parameters: list[Tensor], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The same gradients with a graph: those of the map evaluated layer by layer once more."""
    wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
    found = iter(torch.autograd.grad(by_layer(x, features), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in (x, *parameters)]
