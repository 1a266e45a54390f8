"""A resolved stability config in torch's terms."""

from __future__ import annotations

import math

import torch

from latent_drift.config import StabilityConfig
from latent_drift.numerics.limits import FLOAT_DTYPES, round_down

ALREADY_CLIPPED = 1e-4
"""A norm above the threshold by no more than this was brought there by the script's own clipping and its rounding: it is not clipped twice."""


def _unclipped(config: StabilityConfig) -> float:
    clip = config.gradient.clip
    if clip.kind == "none":
        return math.inf
    if clip.kind == "norm" and float(clip.norm_type) == 2.0:
        return float(clip.max_norm) * (1.0 + ALREADY_CLIPPED)
    return -1.0  # another norm decides, single elements, or the steps before


class Policy:
    """What a guard needs of a config, with every lookup that happens per call prepared."""

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self.act: bool = config.act
        bound = config.exp.bound
        self.exp_max: dict[torch.dtype, float] = {}
        for dtype in FLOAT_DTYPES:
            own = config.precision[dtype].exp_max
            self.exp_max[dtype] = own if bound == "dtype" else round_down(min(own, float(bound)), dtype)
        self.straight_through: bool = config.exp.gradient_outside == "straight_through"
        self.empty_rows: str = config.softmax.empty_rows
        self.upcast: bool = config.softmax.upcast and config.act
        self.unclipped = _unclipped(config)
        """The global gradient norm up to which nothing is clipped."""
        self.bounds_updates: bool = config.gradient.update_bound.kind != "none"
