"""Whether a model's weights would survive integer quantisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from latent_drift.errors import UsageError


@torch.no_grad()
def quantization_report(model: nn.Module, bits: int = 8, max_relative_error: float | None = None) -> list[dict[str, Any]]:
    """Range, clipping and scale health of every weight under symmetric integer quantisation, per output channel and per tensor.

    Args:
        model: floating weights of at least two dimensions are looked at, tied ones once.
        bits: 8 or 4.
        max_relative_error: rms error over rms weight that still counts as healthy; 0.02 for 8 bits, 0.2 for 4 by default.

    Returns:
        One row per weight: `name, bits, shape, min, max, scale_min, scale_max` (scales of the channels that are not zero),
        `zero_channels` (range zero: quantised with scale 1, exactly), `range_ratio` (largest over smallest channel range),
        `error_per_channel`, `error_per_tensor` (relative rms), `clipping` (the share that a scale for the least squared error would clip),
        `outlier` (largest magnitude over rms), `underflow` (share of nonzero weights that become 0 per tensor), `healthy`, `problems`.

    Raises:
        UsageError: bits is neither 8 nor 4.

    *Numerics*: a channel of zeros has scale 0 by the usual formula and gives NaN; non-finite weights are reported and not quantised.

    >>> import torch
    >>> layer = torch.nn.Linear(4, 2); _ = layer.weight.data[0].zero_()
    >>> row = quantization_report(layer)[0]
    >>> row["zero_channels"], row["healthy"], row["scale_min"] > 0
    (1, True, True)
    """
    if bits not in (8, 4):
        raise UsageError(f"quantization_report: bits must be 8 or 4; got {bits}")
    allowed = {8: 0.02, 4: 0.2}[bits] if max_relative_error is None else max_relative_error
    rows, seen = [], set()
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or not parameter.is_floating_point() or id(parameter) in seen or parameter.numel() == 0:
                continue
            seen.add(id(parameter))
            channel = 1 if isinstance(module, _ConvTransposeNd) and key == "weight" else 0
            rows.append(_row(f"{prefix}.{key}".lstrip("."), parameter.detach(), channel, bits, allowed))
    return rows


def _quantised(x: Tensor, scale: Tensor, top: int) -> Tensor:
    return (x / scale).round().clamp(-top, top) * scale


def _row(name: str, weight: Tensor, channel: int, bits: int, allowed: float) -> dict[str, Any]:
    top = 2 ** (bits - 1) - 1
    base: dict[str, Any] = {"name": name, "bits": bits, "shape": tuple(weight.shape)}
    if not bool(torch.isfinite(weight).all()):
        return {**base, "healthy": False, "problems": ["not finite"]}
    x = weight.float().movedim(channel, 0).flatten(1)
    ranges = x.abs().amax(1, keepdim=True)
    zero = ranges == 0
    scales = torch.where(zero, torch.ones_like(ranges), (ranges / top).clamp(min=torch.finfo(torch.float32).tiny))
    whole = torch.where(ranges.max() == 0, torch.ones(()), (ranges.max() / top).clamp(min=torch.finfo(torch.float32).tiny))
    rms = x.square().mean().sqrt()
    unit = rms.clamp(min=torch.finfo(torch.float32).tiny)
    per_channel = ((_quantised(x, scales, top) - x).square().mean().sqrt() / unit).item()
    per_tensor = ((_quantised(x, whole, top) - x).square().mean().sqrt() / unit).item()
    candidates = [whole * f for f in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)]
    best = min(candidates, key=lambda s: float((_quantised(x, s, top) - x).square().mean()))
    used = ranges[~zero]
    row = {
        **base,
        "min": x.min().item(),
        "max": x.max().item(),
        "scale_min": scales[~zero].min().item() if used.numel() else 1.0,
        "scale_max": scales[~zero].max().item() if used.numel() else 1.0,
        "zero_channels": int(zero.sum()),
        "range_ratio": (used.max() / used.min()).item() if used.numel() else 1.0,
        "error_per_channel": per_channel,
        "error_per_tensor": per_tensor,
        "clipping": (x.abs() > best * (top + 0.5)).float().mean().item(),
        "outlier": (ranges.max() / unit).item(),
        "underflow": ((_quantised(x, whole, top) == 0) & (x != 0)).float().mean().item(),
    }
    problems = []
    if bool(zero.all()):
        problems.append("all zero")
    if per_channel > allowed:
        problems.append(f"relative error {per_channel:.3g} per channel exceeds {allowed:g}")
    if per_tensor > allowed >= per_channel:
        problems.append(f"needs per-channel scales (per tensor: {per_tensor:.3g})")
    if used.numel() and not math.isfinite(row["range_ratio"]):
        problems.append("a channel's range is subnormal")
    return {**row, "healthy": not [p for p in problems if not p.startswith("needs")], "problems": problems}
