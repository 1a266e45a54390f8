"""The limits per dtype as plain dictionaries.

The functions of `limits` are cached, and Dynamo traces through a cache into the tensor arithmetic behind it; a
dictionary of numbers is a constant to it. Formulas that must compile read these.
"""

from __future__ import annotations

from typing import Final

import torch

from latent_drift.numerics.limits import FLOAT_DTYPES, largest_exp_argument, largest_square_root, smallest_reciprocal

LARGEST_EXP_ARGUMENT: Final[dict[torch.dtype, float]] = {d: largest_exp_argument(d) for d in FLOAT_DTYPES}
LARGEST_SQUARE_ROOT: Final[dict[torch.dtype, float]] = {d: largest_square_root(d) for d in FLOAT_DTYPES}
SMALLEST_RECIPROCAL: Final[dict[torch.dtype, float]] = {d: smallest_reciprocal(d) for d in FLOAT_DTYPES}
