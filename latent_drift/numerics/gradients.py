"""Gradient norms and clipping that look before they multiply.

`torch.nn.utils.clip_grad_norm_` multiplies every gradient by max_norm / norm: one Inf makes that factor 0 (every good
gradient vanishes, the bad one becomes NaN), one NaN makes everything NaN. Here the norm is read first, once, and what
is not finite is never used as a factor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.finite import dense_values, is_finite, largest_magnitude

HALVES = (torch.float16, torch.bfloat16)


def parameters_of(source: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The parameters named by a module, one tensor, a list or a generator, as a list (a generator is read once, here)."""
    if isinstance(source, nn.Module):
        return list(source.parameters())
    if isinstance(source, Tensor):
        return [source]
    return list(source)


def gradients_of(source: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The gradients that are there: parameters without one are left out, a gradient shared by two names counts once."""
    seen: set[int] = set()
    found = []
    for parameter in parameters_of(source):
        gradient = parameter.grad
        if gradient is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            found.append(gradient)
    return found


def _norm_in_float64(gradients: Sequence[Tensor], norm_type: float) -> float:
    """The norm of tensors of any layout, dtype and device, scaled so that squares neither overflow nor underflow."""
    values = [v for v in (dense_values(g) for g in gradients) if v.numel()]
    if not values:
        return 0.0
    peaks = [largest_magnitude(v).item() for v in values]
    if any(not math.isfinite(p) for p in peaks):
        return math.nan if any(math.isnan(p) for p in peaks) else math.inf
    peak = max(peaks)
    if peak == 0.0 or math.isinf(norm_type):
        return abs(float(peak))  # the largest magnitude may be -0.0
    parts = [torch.linalg.vector_norm(v.double() / peak, norm_type).item() for v in values]
    return float(peak * sum(p**norm_type for p in parts) ** (1.0 / norm_type))


_COPIED_AT_MOST = 2**18  # elements: a copy of one MiB in float32 stays in the cache
DOT_AT_MOST = 2**17  # elements of one product: over this many equal squares its error in float32 is 5e-5, over random ones below 1e-6
_PIECE = 2**15  # elements of one norm: torch adds squares in their own dtype, and over this many of them the error stays near 1e-5

_flattened = torch._C._nn.flatten_dense_tensors  # type: ignore[attr-defined]
_dot = torch.dot
_numel = Tensor.numel
_ONLY_TENSORS = frozenset({Tensor})


def _joined(tensors: list[Tensor]) -> Tensor | None:
    """The same elements in one tensor, where they are small ones on the CPU: there each tensor's own norm costs more than a copy of it."""
    if set(map(type, tensors)) != _ONLY_TENSORS or sum(map(_numel, tensors)) > min(_COPIED_AT_MOST, _PIECE * len(tensors)):
        return None
    together: Tensor = _flattened(tensors)
    return together


def _euclidean_norm(tensors: list[Tensor]) -> float:
    """The 2-norm of dense real tensors on one CPU, in as few operations as it takes: between two training steps, each one that only this function
    calls finds torch's code out of the caches, which costs more than what it computes."""
    together = _joined(tensors)
    if together is not None and not together.is_complex():
        if together.dtype not in HALVES and together.numel() <= DOT_AT_MOST:
            squares: float = _dot(together, together).item()
            return math.sqrt(squares)
        tensors = list(together.split(_PIECE))
    norms = torch._foreach_norm(tensors, 2.0, dtype=torch.float32) if tensors[0].dtype in HALVES else torch._foreach_norm(tensors, 2.0)
    return math.hypot(*[norm.item() for norm in norms])  # joined without a kernel, in float64


def global_norm(gradients: Sequence[Tensor], norm_type: float = 2.0) -> float:
    """The norm of all gradients taken as one vector, as a Python float.

    Args:
        gradients: tensors of any float or complex dtype, layout and device (mixed ones too).
        norm_type: p of the norm, positive or inf.

    Returns:
        A finite number if and only if every element is finite: NaN if any element is NaN, else inf if any is infinite. One read from the device
        on the usual path.

    *Numerics*: half gradients are accumulated in float32. A norm whose squares overflow (elements beyond 1e19 in float32) is computed again in
    float64 with the largest magnitude taken out, so it is finite whenever the gradients are.
    """
    if not gradients:
        return 0.0
    first = gradients[0]
    if first.layout is torch.strided and not first.is_complex():
        try:
            tensors = gradients if isinstance(gradients, list) else list(gradients)
            if first.is_cpu and norm_type == 2.0:
                total = _euclidean_norm(tensors)
            else:
                norms = (
                    torch._foreach_norm(tensors, norm_type, dtype=torch.float32) if first.dtype in HALVES else torch._foreach_norm(tensors, norm_type)
                )
                total = torch.linalg.vector_norm(torch.stack(norms), norm_type).item()
        except (RuntimeError, NotImplementedError):  # mixed devices, sparse or DTensor among them: the careful path takes any
            return _norm_in_float64(gradients, norm_type)
        if math.isfinite(total) and total > 0.0:  # 0 may be squares that underflowed
            return float(total)
    return _norm_in_float64(gradients, norm_type)


def tensor_norms(tensors: Sequence[Tensor], norm_type: float = 2.0) -> list[float]:
    """The norm of each tensor (any dtype and layout, devices mixed), in the order given; read from the device together, once as a rule.

    *Numerics*: as `global_norm`: a norm that overflowed or vanished although its elements did not is measured again, scaled.
    """
    values = [dense_values(t) for t in tensors]
    if not values:
        return []
    device = values[0].device
    if all(v.dtype is torch.float32 and v.device == device and v.numel() for v in values):
        norms = list(torch._foreach_norm(values, norm_type))
    else:
        norms = [
            torch.linalg.vector_norm(v, norm_type, dtype=torch.float32 if v.dtype in HALVES else None)
            if v.numel()
            else v.new_zeros((), dtype=torch.float32)
            for v in values
        ]
    wide = torch.float64 if any(v.dtype is torch.float64 for v in values) and device.type != "mps" else torch.float32
    read: list[float] = torch.stack([n.to(device, wide) for n in norms]).tolist()
    return [n if math.isfinite(n) and n > 0.0 else _norm_in_float64([v], norm_type) for n, v in zip(read, values, strict=True)]


@dataclass(frozen=True, slots=True)
class ClipOutcome:
    """What a clipping call found and did. `norm_after` is computed from the factor, not measured again."""

    norm_before: float
    norm_after: float
    clipped: bool

    @property
    def finite(self) -> bool:
        """True if every gradient was finite. Nothing is changed when they were not."""
        return math.isfinite(self.norm_before)


def scale_(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply every gradient by a finite factor, in place."""
    try:
        torch._foreach_mul_(list(gradients), factor)
    except (RuntimeError, NotImplementedError):
        for gradient in gradients:
            gradient.detach().mul_(factor)


def clip_by_global_norm_(gradients: Sequence[Tensor], max_norm: float, norm_type: float = 2.0, *, norm: float | None = None) -> ClipOutcome:
    """Shrink the gradients together so that their global norm is at most `max_norm`; leave them alone if it is, or if it is not finite.

    The factor is that of `torch.nn.utils.clip_grad_norm_`, max_norm / (norm + 1e-6).

    Args:
        norm: the norm if it is known already, so that it is not computed twice.

    Raises:
        UsageError: `max_norm` is not a positive number.
    """
    if not max_norm > 0:
        raise UsageError(f"max_norm must be a positive number; got {max_norm!r}")
    before = global_norm(gradients, norm_type) if norm is None else norm
    if not math.isfinite(before) or before <= max_norm:
        return ClipOutcome(before, before, False)
    factor = max_norm / (before + 1e-6)
    # A factor below the smallest normal would flush float32 gradients to 0 on the way: take the largest out first.
    if factor < 1e-30:
        scale_(gradients, 1e-20)
        scale_(gradients, factor * 1e20)
    else:
        scale_(gradients, factor)
    return ClipOutcome(before, before * factor, True)


def clip_by_value_(gradients: Sequence[Tensor], max_value: float, *, norm: float | None = None) -> ClipOutcome:
    """Bound every element to [-max_value, max_value]; NaN and Inf are left for the caller's policy (nothing is changed then).

    Raises:
        UsageError: `max_value` is not a positive number.
    """
    if not max_value > 0:
        raise UsageError(f"max_value must be a positive number; got {max_value!r}")
    before = global_norm(gradients) if norm is None else norm
    if not math.isfinite(before):
        return ClipOutcome(before, before, False)
    clipped = False
    for gradient in gradients:
        values = dense_values(gradient)
        if largest_magnitude(values).item() > max_value:
            values.clamp_(-max_value, max_value)
            clipped = True
    return ClipOutcome(before, global_norm(gradients) if clipped else before, clipped)


def _unit_norms(x: Tensor) -> Tensor:
    """Norms of the rows that belong to one output unit (Brock et al. 2021, section 4.1): all axes but the first; the whole tensor below two axes."""
    x = torch.view_as_real(x.detach().resolve_conj()).flatten(-2) if x.is_complex() else x.detach()
    x = x.double() if x.dtype is torch.float64 else x.float()
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True) if x.dim() > 1 else torch.linalg.vector_norm(x)
    return norms


def clip_adaptively_(parameters: Sequence[Tensor], clipping: float = 0.01, floor: float = 1e-3, *, norm: float | None = None) -> ClipOutcome:
    """Adaptive gradient clipping (AGC): no unit's gradient exceeds `clipping` times the norm of that unit's weights.

    Args:
        parameters: parameters with gradients; those without one are passed over.
        clipping: the largest ratio of gradient norm to weight norm.
        floor: weight norms below this count as this, so that weights at 0 can move.
        norm: the gradients' global norm if it is known already.

    *Source*: Brock, De, Smith, Simonyan, High-Performance Large-Scale Image Recognition Without Normalization, 2021, equation 3.
    """
    if not clipping > 0 or not floor > 0:
        raise UsageError(f"clipping and floor must be positive numbers; got {clipping!r} and {floor!r}")
    with_gradient = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    before = global_norm(gradients) if norm is None else norm
    if not math.isfinite(before):
        return ClipOutcome(before, before, False)
    clipped = False
    for parameter, gradient in zip(with_gradient, gradients, strict=True):
        if gradient.layout is not torch.strided:
            continue
        limit = _unit_norms(parameter).clamp_(min=floor).mul_(clipping)
        norms = _unit_norms(gradient)
        too_large = norms > limit
        if bool(too_large.any()):
            factor = torch.where(too_large, limit / norms.clamp(min=torch.finfo(norms.dtype).tiny), torch.ones_like(norms))
            gradient.detach().mul_(factor.to(gradient.real.dtype if gradient.is_complex() else gradient.dtype))
            clipped = True
    return ClipOutcome(before, global_norm(gradients) if clipped else before, clipped)


def zero_nonfinite_(gradients: Sequence[Tensor]) -> int:
    """Set the NaN and infinite elements to 0, leave every other element bitwise alone; returns how many were set."""
    count = 0
    for gradient in gradients:
        if not is_finite(gradient):
            values = dense_values(gradient)
            bad = ~torch.isfinite(values)
            count += int(bad.sum())
            values.masked_fill_(bad, 0.0)
    return count


class GradientHistory:
    """A bounded record of finite global norms, and the thresholds that follow from it.

    Percentile and z-score are over the run's past steps, never over the parameters of one step, and a non-finite norm is
    never recorded, so one NaN cannot poison the statistics.
    """

    def __init__(self, length: int = 1000) -> None:
        if length < 2:
            raise UsageError(f"a history needs room for at least 2 norms; got length={length}")
        self._norms: deque[float] = deque(maxlen=length)

    def __len__(self) -> int:
        return len(self._norms)

    @property
    def norms(self) -> tuple[float, ...]:
        """The recorded norms, oldest first."""
        return tuple(self._norms)

    def record(self, norm: float) -> None:
        """Add a norm; one that is not finite is left out."""
        if math.isfinite(norm):
            self._norms.append(norm)

    def percentile(self, q: float) -> float:
        """The q-th percentile (0 to 100) of the recorded norms, linearly interpolated; inf while nothing is recorded."""
        if not self._norms:
            return math.inf
        ordered = sorted(self._norms)
        position = (len(ordered) - 1) * q / 100.0
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    def zscore_threshold(self, z: float) -> float:
        """mean + z * standard deviation of the recorded norms; inf while fewer than two are recorded."""
        if len(self._norms) < 2:
            return math.inf
        mean = math.fsum(self._norms) / len(self._norms)
        variance = math.fsum((n - mean) ** 2 for n in self._norms) / (len(self._norms) - 1)
        return mean + z * math.sqrt(variance)

    def state_dict(self) -> dict[str, list[float]]:
        """The recorded norms, for a checkpoint."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Replace the recorded norms by those of a checkpoint."""
        self._norms.clear()
        for norm in state["norms"]:
            self.record(norm)
