"""Operator norms, spectra, condition numbers and Jacobian norms, with stated errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary

from latent_drift.errors import UsageError
from latent_drift.stability.calling import call_model
from latent_drift.stability.initialization.lsuv import undisturbed
from latent_drift.stability.operators import Operator, Spectrum, lanczos, layer_operator, linear_operator

_FORMED_AT_MOST = 512  # inputs or outputs: its singular values take a moment

# Largest slope of each elementwise function; SiLU's and GELU's are their maxima, to the digits given (rounded up).
_SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.ELU: 1.0,
    nn.SiLU: 1.0999,
    nn.GELU: 1.1290,
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Dropout: 1.0,
    nn.Softmax: 1.0,
    nn.LogSoftmax: 2.0,
    nn.MaxPool1d: 1.0,
    nn.MaxPool2d: 1.0,
    nn.AdaptiveAvgPool2d: 1.0,
    nn.AvgPool2d: 1.0,
}


def spectrum(layer: nn.Module | Tensor, k: int = 6, input_shape: tuple[int, ...] | None = None, rtol: float = 1e-3) -> Spectrum:
    """The `k` largest singular values of a layer as a linear map, descending, each with a bound on its error.

    Args:
        layer: a matrix, a linear layer, or a convolution of any kind.
        k: how many.
        input_shape: (channels, *spatial) of a convolution's input.
        rtol: wanted relative accuracy.

    Raises:
        UsageError: a convolution without `input_shape`, or no linear map.

    *Numerics*: up to 512 inputs and outputs the matrix is formed and its singular values are exact but for rounding. Beyond, Golub-Kahan-Lanczos
    through autograd: `errors[i]` bounds the distance of `values[i]` from a singular value, and one that repeats may be told once. A convolution's
    reshaped kernel is a different matrix, whose norm may be smaller or larger by the square root of the kernel's size.

    >>> import torch
    >>> spectrum(torch.diag(torch.tensor([5.0, 3.0, 1.0])), k=2).values
    tensor([5., 3.], dtype=torch.float64)
    """
    operator = layer_operator(layer, input_shape)
    if max(operator.inputs, operator.outputs) > _FORMED_AT_MOST:
        return lanczos(operator, k, rtol)
    values = _singular_values(operator)
    found = values[:k]
    return Spectrum(found, torch.full_like(found, float(values[0]) * len(values) * torch.finfo(torch.float64).eps if len(values) else 0.0))


def _singular_values(operator: Operator) -> Tensor:
    """All of them, descending, in float64, of the matrix formed column by column."""
    identity = torch.eye(operator.inputs, dtype=operator.dtype, device=operator.device)
    matrix = torch.stack([operator.forward(column) for column in identity], 1)
    values: Tensor = torch.linalg.svdvals(matrix.double() if matrix.device.type != "mps" else matrix)
    return values.cpu()


def condition_number(layer: nn.Module | Tensor, input_shape: tuple[int, ...] | None = None, max_size: int = 2048) -> float:
    """Largest over smallest singular value (over min(inputs, outputs) of them); inf for a singular map.

    Args:
        layer, input_shape: as `spectrum`.
        max_size: up to this many inputs and outputs the matrix is formed, column by column, and its singular values are exact; beyond, refused, since
            the smallest singular value is not to be had from a few products.

    Raises:
        UsageError: as `spectrum`, or the map is larger than `max_size`.

    >>> import torch
    >>> round(condition_number(torch.diag(torch.tensor([8.0, 2.0]))), 5)
    4.0
    """
    operator = layer_operator(layer, input_shape)
    if max(operator.inputs, operator.outputs) > max_size:
        raise UsageError(
            f"condition_number: the map is {operator.outputs} x {operator.inputs}, larger than max_size={max_size}; raise it, or use spectrum"
        )
    values = _singular_values(operator)
    largest, smallest = values[0].item(), values[-1].item()
    return largest / smallest if smallest > largest * torch.finfo(operator.dtype).eps else math.inf


def jacobian_norm(function: Callable[[Tensor], Tensor], x: Tensor, rtol: float = 1e-3, max_steps: int = 100) -> float:
    """The largest singular value of the Jacobian of `function` at `x`: how much a small change of `x` can grow.

    Args:
        function: differentiable twice, tensor to tensor (a model in eval mode, say). If it treats the rows of a batch independently, the
            result is the largest over the rows.
        x: real floating tensor.
        rtol, max_steps: accuracy wanted, and products spent at most.

    Raises:
        UsageError: the result does not depend on `x` differentiably.

    *Numerics*: Lanczos with J v and J^T w from autograd; a lower bound that is within `rtol` unless `max_steps` was reached.

    >>> import torch
    >>> round(jacobian_norm(lambda z: z @ torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.ones(5, 2)), 4)
    2.0
    """
    return float(lanczos(linear_operator(function, x), 1, rtol, max_steps).values[0])


def lipschitz_bounds(model: nn.Module, batch: Any = None, rtol: float = 1e-3) -> dict[str, Any]:
    """How much the model can stretch a change of its input: per layer, a bound from above, and one from below.

    Args:
        model: any; a bound from above exists where it is a chain (`nn.Sequential`, nested) of known layers.
        batch: an input batch, for the sizes that convolutions see and the point of the lower bound; a model without convolutions has its upper bound
            without one.
        rtol: accuracy of each norm.

    Returns:
        `layers`: name -> operator norm (upper end of its error bar) of every linear map, slope of every nonlinearity; `upper`: the product,
        or None with `reason`; `lower`: the Jacobian's norm at the batch, for models of one floating tensor, else None.

    *Numerics*: norms are of the map itself, a convolution's at the size of its input.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> bounds = lipschitz_bounds(net, torch.randn(4, 3))
    >>> bounds["lower"] <= bounds["upper"]
    True
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, module: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes.setdefault(name, tuple(inputs[0].shape))

    leaves = {name: m for name, m in model.named_modules() if not any(True for _ in m.children())}
    handles = [m.register_forward_pre_hook(partial(record, name)) for name, m in leaves.items()]
    try:
        if batch is not None:
            with undisturbed(model):
                call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    layers: dict[str, float] = {}
    unknown: list[str] = []
    for name, module in leaves.items():
        bound = _layer_bound(module, shapes.get(name), rtol)
        if bound is None:
            unknown.append(f"{name or 'model'} ({type(module).__name__})")
        else:
            layers[name] = bound
    chain = _is_chain(model)
    upper = math.prod(layers.values()) if chain and not unknown else None
    reason = "" if upper is not None else "the model is no chain of layers" if not chain else f"no constant is known for {', '.join(unknown)}"
    if unknown and batch is None:
        reason += "; a convolution's depends on the size of its input: pass a batch"
    lower = None
    if isinstance(batch, Tensor) and batch.is_floating_point():
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        try:
            lower = jacobian_norm(lambda x: model(x), batch, rtol)
        finally:
            for module, mode in modes:
                module.training = mode
    return {"layers": layers, "upper": upper, "lower": lower, "reason": reason}


def _is_chain(model: nn.Module) -> bool:
    if isinstance(model, nn.Sequential):
        return all(_is_chain(child) for child in model)
    return not any(True for _ in model.children())


def _layer_bound(module: nn.Module, shape: tuple[int, ...] | None, rtol: float) -> float | None:
    if isinstance(module, (nn.Linear, _ConvNd)):
        spatial = getattr(module, "kernel_size", ())
        if shape is None and spatial:
            return None
        found = lanczos(layer_operator(module, shape[-len(spatial) - 1 :] if shape is not None and spatial else None), 1, rtol)
        return float(found.values[0] + found.errors[0])
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, _BatchNorm) and module.running_var is not None:
        weight = module.weight.detach() if module.weight is not None else torch.ones_like(module.running_var)
        return float((weight.abs() / (module.running_var + module.eps).sqrt()).max())
    return _SLOPES.get(type(module))


# The left singular vector of each weight, kept from call to call: one power iteration a step then suffices.
_singular: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def spectral_penalty(model: nn.Module, target: float = 0.0, iterations: int = 2, size: int = 16) -> Tensor:
    """Sum over layers of max(sigma - target, 0)**2, sigma the largest singular value: add it to the loss, times a weight.

    Args:
        model: its linear and convolutional layers count, tied weights once.
        target: singular values up to it cost nothing.
        iterations: power iterations per call; vectors are kept between calls.
        size: side of the image on which a convolution is measured (as a linear map, not as a reshaped kernel).

    Returns:
        A scalar with gradient to the weights, formed in float32; exactly 0 without such layers.

    *Source*: Yoshida and Miyato, Spectral norm regularization, 2017.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False); _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(spectral_penalty(layer, iterations=20).item(), 3)
    9.0
    """
    total: Tensor | None = None
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, (nn.Linear, _ConvNd)) or id(module.weight) in seen or module.weight.numel() == 0:
            continue
        seen.add(id(module.weight))
        excess = (_largest(module, iterations, size) - target).clamp(min=0)
        total = excess.square() if total is None else total + excess.square()
    if total is None:
        first = next(model.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)
    return total


def _largest(module: nn.Linear | _ConvNd, iterations: int, size: int) -> Tensor:
    weight = module.weight
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = (1, module.in_features)
        parameters = {"weight": wide}
    else:
        shape = (1, module.in_channels, *(size for _ in module.kernel_size))
        parameters = {"weight": wide}
    if module.bias is not None:
        parameters["bias"] = torch.zeros_like(module.bias, dtype=wide.dtype)
    v: Tensor | None = _singular.get(weight)  # type: ignore[no-untyped-call]
    if v is None or v.shape != shape or v.device != weight.device:
        v = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(wide)
    frozen = {key: value.detach() for key, value in parameters.items()}
    with torch.enable_grad():
        for _ in range(max(1, iterations)):
            x = v.detach().requires_grad_()
            y = torch.func.functional_call(module, frozen, (x,))
            (v,) = torch.autograd.grad(y, x, y.detach())
            v = v / torch.linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny)
    v = v.detach()
    _singular[weight] = v
    image = torch.func.functional_call(module, parameters, (v,))
    u = image.detach() / torch.linalg.vector_norm(image.detach()).clamp(min=torch.finfo(image.dtype).tiny)
    sigma: Tensor = (u * image).sum()
    return sigma
