"""Affine coupling layers conditioned on time, and the flow made of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.errors import UsageError
from latent_drift.models.fused_flow import fused_flow
from latent_drift.models.sizes import require_size
from latent_drift.models.soft_bound import soft_bound
from latent_drift.models.time_features import TimeAwareTransform, embed_time, require_time_dim, time_frequencies
from latent_drift.numerics.bounds import soft_clamp

DEFAULT_SCALE_RANGE = 3.0
"""Largest log-scale of one layer as published."""

EDGE = 2.0
"""Magnitude of raw / scale_range up to which the bound of the log-scale is tanh alone."""

FARTHEST_SEEN = 10.0
"""Magnitude beyond which the networks see no difference: ten standard deviations of the latents they are for."""


def alternating_mask(dim: int, parity: int) -> Tensor:
    """Ones and zeros in turn, (dim,), float32; the first is one where `parity` is odd."""
    return ((torch.arange(dim) + parity) % 2).to(torch.float32)


class CouplingLayer(nn.Module):
    """Scales and shifts the unmasked half of x by functions of the masked half and the time.

    Args:
        dim: size of x.
        hidden: width of the network.
        mask: (dim,) of ones (kept, and seen by the network) and zeros (transformed); None takes every second entry.
        time_dim: width of the time features.
        scale_range: largest magnitude of the log-scale.
        legacy_compat: as published: plain tanh, whose gradient is exactly 0 in float32 for raw scales beyond 9 scale_range.

    Raises:
        UsageError: sizes, mask or range that cannot be used.

    *Numerics*: log-scale = scale_range * tanh(raw / scale_range); a ratio beyond 2 is first pressed below 2 + pi / 2 (tanh: 0.998)
    with a slope that decays like 1/ratio**2, so that the gradient returns. The network sees entries beyond +-10 as +-10: a shift
    proportional to a far x would grow by a factor in every layer. x itself is passed on unbounded, with its gradient; in float16 it is
    pressed below 32,752 (the identity, and invertible, up to 16,376).
    """

    mask: Tensor

    def __init__(
        self,
        dim: int,
        hidden: int,
        mask: Tensor | None = None,
        time_dim: int = 32,
        scale_range: float = DEFAULT_SCALE_RANGE,
        *,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        self.dim = require_size(dim, "dim", "CouplingLayer")
        require_size(hidden, "hidden", "CouplingLayer")
        self.time_dim = require_time_dim(time_dim, "CouplingLayer")
        if not 0.0 < scale_range < math.inf:
            raise UsageError(f"CouplingLayer: scale_range must be positive and finite; got {scale_range}")
        mask = alternating_mask(dim, 0) if mask is None else torch.as_tensor(mask).detach().to(torch.get_default_dtype())
        has_values = mask.device.type != "meta"  # under torch.device("meta") they come later, with the state dict
        if mask.shape != (dim,) or (has_values and not bool(((mask == 0) | (mask == 1)).all())):
            values = f", values {mask.tolist()}" if has_values else ""
            raise UsageError(f"CouplingLayer: mask must have shape ({dim},) and hold only 0 and 1; got shape {tuple(mask.shape)}{values}")
        self.scale_range = float(scale_range)
        self.legacy_compat = legacy_compat
        self.register_buffer("mask", mask.clone())
        self._gated: tuple[Tensor, int, Tensor] | None = None
        self.transform_net = nn.Sequential(
            nn.Linear(dim + time_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * dim),
        )

    def forward(self, x: Tensor, time_feat: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """The transformed x (B, dim) and the log-determinant (B,) of the map (of its inverse with `reverse`).

        `time_feat` holds features (B, time_dim), or times (B, 1), which are embedded; one row serves all of x.
        """
        if time_feat.shape[-1] == 1:
            time_feat = embed_time(time_feat, time_frequencies(self.time_dim).to(time_feat.device))
        if time_feat.dtype != x.dtype or time_feat.shape[0] != x.shape[0]:
            time_feat = time_feat.to(x.dtype).expand(x.shape[0], -1)
        seen = (x if self.legacy_compat else F.hardtanh(x, -FARTHEST_SEEN, FARTHEST_SEEN)) * self.mask
        raw: Tensor = self.transform_net(torch.cat([seen, time_feat], dim=-1)).to(x.dtype)
        ratio, shift = (raw * self._gates()).chunk(2, dim=-1)
        log_scale = self.scale_range * torch.tanh(ratio if self.legacy_compat else soft_bound(ratio, -EDGE, EDGE))
        if reverse:
            return self._in_range((x - shift) * torch.exp(-log_scale)), -log_scale.sum(dim=-1)
        y = x * torch.exp(log_scale) + shift  # addcmul would multiply by its value, 1, twice on the way back
        return self._in_range(y), log_scale.sum(dim=-1)

    def _in_range(self, y: Tensor) -> Tensor:
        """`y` itself, but in float16, where a latent of 1e4 times e**3 is Inf: there pressed below half the largest number."""
        if y.dtype != torch.float16 or self.legacy_compat:
            return y
        limit = 0.5 * torch.finfo(y.dtype).max
        return soft_clamp(y, -limit, limit, margin=0.5 * limit)

    def _gates(self) -> Tensor:
        """(2 dim,): zero where the mask is one; elsewhere 1 / scale_range for the raw log-scales, 1 for the shifts."""
        mask = self.mask
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or mask.is_inference():
            return self._gates_of(mask)  # a tensor made under inference mode could not be kept for training
        known = self._gated
        if known is None or known[0] is not mask or known[1] != mask._version:
            known = self._gated = (mask, mask._version, self._gates_of(mask))
        return known[2]

    def _gates_of(self, mask: Tensor) -> Tensor:
        moved = 1 - mask
        return torch.cat([moved / self.scale_range, moved])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_gated": None}  # copies and pickles have masks of their own


class RaccoonFlow(nn.Module):
    """`num_layers` coupling layers with masks in turn, all at the same time t.

    Args:
        latent_dim: size of z.
        hidden_dim: width of each layer's network.
        num_layers: number of layers.
        time_dim: width of the time features.
        max_log_scale: largest total log-scale of one dimension over all layers; None for what the four published layers could reach, 6.
        legacy_compat: as published: every layer may scale by e**3, whatever the depth (e**48 a dimension over 32 layers).

    Raises:
        UsageError: sizes that cannot be used, an odd `time_dim`.

    *Numerics*: a dimension is scaled by every second layer, so each gets max_log_scale / ceil(num_layers / 2), at most 3: four layers are as
    published. Shifts are not bounded. reverse(forward(z)) = z to rounding times the flow's condition, at most e**(2 max_log_scale).
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dim: int,
        num_layers: int = 4,
        time_dim: int = 32,
        *,
        max_log_scale: float | None = None,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        require_size(latent_dim, "latent_dim", "RaccoonFlow")
        require_size(hidden_dim, "hidden_dim", "RaccoonFlow")
        require_size(num_layers, "num_layers", "RaccoonFlow")
        self.max_log_scale = 2.0 * DEFAULT_SCALE_RANGE if max_log_scale is None else float(max_log_scale)
        share = self.max_log_scale / math.ceil(num_layers / 2)
        scale_range = DEFAULT_SCALE_RANGE if legacy_compat else min(DEFAULT_SCALE_RANGE, share)
        self.time_embed = TimeAwareTransform(time_dim)
        self._embedded: tuple[Tensor, tuple[float, int, torch.dtype, torch.device], Tensor] | None = None
        self.flows = nn.ModuleList(
            [
                CouplingLayer(latent_dim, hidden_dim, self._make_mask(latent_dim, i % 2), time_dim, scale_range, legacy_compat=legacy_compat)
                for i in range(num_layers)
            ]
        )

    @property
    def coupling_layers(self) -> nn.ModuleList:
        """The layers in forward order: `flows` under its other published name."""
        return self.flows

    def _make_mask(self, dim: int, parity: int) -> Tensor:
        return alternating_mask(dim, parity)

    def forward(self, z: Tensor, t: Tensor | float, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """The transformed z (B, latent_dim) and the log-determinant (B,), at t: (B, 1), (B,), or one time for all as (), (1, 1) or a float."""
        features = self._features(t, z).expand(z.shape[0], -1)
        if not reverse:
            fused = fused_flow(list(self.flows), z, features, CouplingLayer, FARTHEST_SEEN, EDGE, self._by_layer)  # type: ignore[arg-type]
            if fused is not None:
                return fused
        return self._by_layer(z, features, reverse)

    def _features(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Features of the time, (B, time_dim) or (1, time_dim), in the dtype of z; those of the number seen last are kept."""
        if not isinstance(t, float) or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            t = torch.as_tensor(t, device=z.device).reshape(-1, 1)
            return self.time_embed.embed_time(t.to(torch.promote_types(z.dtype, torch.float32))).to(z.dtype)
        freqs, known = self.time_embed.freqs, self._embedded
        key = (t, freqs._version, z.dtype, z.device)
        if known is None or known[0] is not freqs or known[1] != key:
            column = torch.full((1, 1), t, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
            known = self._embedded = (freqs, key, self.time_embed.embed_time(column).to(z.dtype))
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_embedded": None}

    def _by_layer(self, z: Tensor, features: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        log_det = None
        for layer in reversed(self.flows) if reverse else self.flows:
            z, layer_log_det = layer(z, features, reverse)
            log_det = layer_log_det if log_det is None else log_det + layer_log_det
        assert log_det is not None  # there is at least one layer
        return z, log_det
