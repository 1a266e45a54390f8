"""Singular values of linear maps given by their action: layers, convolutions included, and Jacobians.

Golub-Kahan-Lanczos with full reorthogonalisation: a few dozen products instead of a decomposition, and a
bound on the error of each singular value that comes for free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from latent_drift.errors import UsageError


class Operator(NamedTuple):
    """A linear map by its action on flat vectors."""

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    inputs: int
    outputs: int
    dtype: torch.dtype
    device: torch.device


class Spectrum(NamedTuple):
    """Largest singular values, descending, and for each a bound on its distance from a true one (rounding aside)."""

    values: Tensor
    errors: Tensor


def linear_operator(function: Callable[[Tensor], Tensor], x: Tensor) -> Operator:
    """The derivative of `function` at `x` as an operator: products with it and its transpose through autograd, no matrix.

    Raises:
        UsageError: `function` does not depend on `x` differentiably.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(x)
        if not y.requires_grad:
            raise UsageError("the function's result does not depend on x through differentiable operations")
        # J v without forward mode: the transpose product is linear in u, and its derivative along v is J v.
        u = torch.zeros_like(y, requires_grad=True)
        (transposed,) = torch.autograd.grad(y, x, u, create_graph=True, materialize_grads=True)

    def forward(v: Tensor) -> Tensor:
        if not transposed.requires_grad:
            return torch.zeros(y.numel(), dtype=x.dtype, device=x.device)
        (product,) = torch.autograd.grad(transposed, u, v.view_as(x), retain_graph=True, materialize_grads=True)
        return product.detach().reshape(-1)

    def adjoint(w: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(y, x, w.view_as(y), retain_graph=True, materialize_grads=True)
        return product.detach().reshape(-1)

    return Operator(forward, adjoint, x.numel(), y.numel(), x.dtype, x.device)


def layer_operator(layer: nn.Module | Tensor, input_shape: tuple[int, ...] | None = None) -> Operator:
    """A layer without its bias, or a matrix, as an operator.

    Args:
        layer: a tensor (rows are outputs), a linear layer, a convolution (transposed, grouped, padded, strided, dilated).
        input_shape: (channels, *spatial) of one input, needed by a convolution: its norm depends on it.

    Raises:
        UsageError: a convolution without `input_shape`, or another kind of module.
    """
    if isinstance(layer, (Tensor, nn.Linear)):
        weight = (layer if isinstance(layer, Tensor) else layer.weight).detach()
        if weight.dim() != 2:
            raise UsageError(f"a matrix of 2 dimensions was expected; got shape {tuple(weight.shape)}; pass the layer and its input_shape instead")
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return Operator(lambda v: wide @ v, lambda w: wide.t() @ w, weight.shape[1], weight.shape[0], wide.dtype, weight.device)
    if isinstance(layer, _ConvNd):
        if input_shape is None:
            raise UsageError("a convolution's norm depends on the size of its input; pass input_shape=(channels, *spatial)")
        weight = layer.weight.detach()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        zero = torch.zeros(1, *input_shape, dtype=dtype, device=weight.device)
        parameters = {"weight": weight.to(dtype)} | ({} if layer.bias is None else {"bias": torch.zeros_like(layer.bias, dtype=dtype)})
        return linear_operator(lambda x: torch.func.functional_call(layer, parameters, (x,)), zero)
    raise UsageError(f"{type(layer).__name__} is no linear map; pass a linear layer, a convolution, a matrix, or use jacobian_norm")


def lanczos(operator: Operator, k: int = 1, rtol: float = 1e-3, max_steps: int = 200, seed: int = 0) -> Spectrum:
    """The `k` largest singular values to relative accuracy `rtol`, or the best after `max_steps`, with error bounds.

    *Source*: Golub and Kahan 1965; the bound: Parlett, The symmetric eigenvalue problem, 13.2.
    """
    limit = min(operator.inputs, operator.outputs)
    if limit == 0:
        return Spectrum(torch.zeros(0), torch.zeros(0))
    k = min(k, limit)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(operator.inputs, generator=generator, dtype=torch.float64).to(operator.dtype).to(operator.device)
    right = [start / torch.linalg.vector_norm(start)]
    left: list[Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    values, errors = torch.zeros(k), torch.full((k,), math.inf)
    scale = 0.0
    for step in range(min(limit, max_steps)):
        u = _orthogonalised(operator.forward(right[-1]), left)
        alpha = torch.linalg.vector_norm(u).item()
        scale = max(scale, alpha)
        tiny = scale * torch.finfo(operator.dtype).eps * math.sqrt(limit)
        left.append(u / alpha if alpha > tiny else torch.zeros_like(u))
        alphas.append(alpha)
        v = _orthogonalised(operator.adjoint(left[-1]), right)
        beta = torch.linalg.vector_norm(v).item()
        betas.append(beta)
        exhausted = beta <= tiny or step + 1 == limit
        if exhausted or (step + 1 >= k and (step + 1 == max_steps or step % 4 == 3)):
            small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
            if len(alphas) > 1:
                small += torch.diag(torch.tensor(betas[:-1], dtype=torch.float64), 1)
            complete = len(left) == operator.outputs  # the left space is exhausted: with the last beta nothing is left out
            if complete:
                last = torch.zeros(len(alphas), 1, dtype=torch.float64)
                last[-1] = beta
                small = torch.cat([small, last], 1)
            p, s, _ = torch.linalg.svd(small, full_matrices=False)
            values = torch.zeros(k, dtype=torch.float64)
            values[: min(k, len(s))] = s[:k]
            errors = torch.zeros(k, dtype=torch.float64)
            errors[: min(k, len(s))] = 0.0 if complete else beta * p[-1, :k].abs()
            if exhausted and step + 1 < limit and len(s) < k:
                errors[len(s) :] = 0.0  # an invariant subspace: what is left of the map is zero along what the start can reach
            if exhausted or bool((errors <= rtol * values).all()):
                break
        if beta <= tiny:
            break
        right.append(v / beta)
    return Spectrum(values, errors)


def _orthogonalised(x: Tensor, basis: list[Tensor]) -> Tensor:
    if not basis:
        return x
    q = torch.stack(basis)
    for _ in range(2):  # twice is enough (Kahan)
        x = x - q.t() @ (q @ x)
    return x
