"""A resolved stability config in torch's terms."""

from __future__ import annotations

import torch

from latent_drift.config import StabilityConfig
from latent_drift.numerics.limits import FLOAT_DTYPES, round_down


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
        self.clips: bool = config.gradient.clip.kind != "none"
        self.bounds_updates: bool = config.gradient.update_bound.kind != "none"
