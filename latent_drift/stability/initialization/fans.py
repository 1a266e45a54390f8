"""How many inputs an output sums over, and the other way round, for every layer that has weights.

The traps: `nn.init` reads shapes alone, so it swaps the two for transposed convolutions, counts a grouped
convolution's outputs as if every input fed them all, and takes an embedding for a matrix product.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from latent_drift.errors import UsageError


class Fans(NamedTuple):
    """Inputs that one output sums over, and outputs that one input feeds.

    >>> Fans(4.0, 2.0).of("fan_avg")
    3.0
    """

    fan_in: float
    fan_out: float

    def of(self, mode: str) -> float:
        """`fan_in`, `fan_out`, or their mean for `fan_avg`.

        Raises:
            UsageError: another mode.
        """
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise UsageError(f"fan mode must be fan_in, fan_out or fan_avg; got {mode!r}")
        return (self.fan_in + self.fan_out) / 2 if mode == "fan_avg" else float(getattr(self, mode))


def fans_of_tensor(weight: Tensor) -> Fans:
    """Fans of a weight by its shape (out, in, *kernel): right for linear layers and ungrouped convolutions.

    Raises:
        UsageError: fewer than two dimensions: a bias or a norm's weight has no fans.
    """
    if weight.dim() < 2:
        raise UsageError(f"initialisation needs a weight of at least 2 dimensions (out, in, ...); got shape {tuple(weight.shape)}; biases start at 0")
    kernel = math.prod(weight.shape[2:])
    return Fans(float(weight.shape[1] * kernel), float(weight.shape[0] * kernel))


def fans_of(module: nn.Module) -> Fans:
    """Fans of a layer: linear, convolution (grouped, transposed, strided), embedding.

    A transposed convolution with stride s gives each output about kernel / s terms per input channel; a strided
    convolution feeds each input to about kernel / s outputs.

    Raises:
        UsageError: the module has no weight of at least two dimensions.

    >>> from torch import nn
    >>> fans_of(nn.Conv2d(8, 16, 3, groups=4))  # 2 inputs and 4 outputs a group, 9 taps
    Fans(fan_in=18.0, fan_out=36.0)
    >>> fans_of(nn.ConvTranspose2d(8, 16, 4, stride=2))
    Fans(fan_in=32.0, fan_out=256.0)
    >>> fans_of(nn.Embedding(1000, 64))  # a row is looked up, nothing is summed
    Fans(fan_in=1.0, fan_out=64.0)
    """
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Fans(1.0, float(module.embedding_dim))
    if isinstance(module, _ConvNd):
        kernel = math.prod(module.kernel_size)
        stride = math.prod(module.stride)
        inputs, outputs = module.in_channels // module.groups, module.out_channels // module.groups
        if isinstance(module, _ConvTransposeNd):
            return Fans(inputs * kernel / min(stride, kernel), float(outputs * kernel))
        return Fans(float(inputs * kernel), outputs * kernel / min(stride, kernel))
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise UsageError(f"{type(module).__name__} has no weight to initialise")
    return fans_of_tensor(weight)
