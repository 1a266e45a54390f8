"""Xavier, He, orthogonal, spectral and depth-scaled initialisation of one weight, and of a model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary

from latent_drift.config.active import active
from latent_drift.errors import UsageError
from latent_drift.stability.initialization.describe import describe
from latent_drift.stability.initialization.fans import Fans, fans_of, fans_of_tensor
from latent_drift.stability.initialization.lsuv import lsuv_init
from latent_drift.stability.initialization.residual import fixup_init, rezero_init

_GAINS = {"gelu": 1.5335, "silu": 1.6765, "swish": 1.6765, "softplus": 1.0, "identity": 1.0}  # E[f(z)^2]**-0.5 for z ~ N(0, 1), see test


def gain_of(nonlinearity: str, a: float = 0.0) -> float:
    """The gain that keeps the second moment through a nonlinearity: torch's, and E[f(z)**2]**-0.5 for GELU and SiLU, which torch does not know.

    Raises:
        UsageError: an unknown nonlinearity.

    >>> round(gain_of("relu") ** 2, 6), gain_of("silu")
    (2.0, 1.6765)
    """
    if nonlinearity in _GAINS:
        return _GAINS[nonlinearity]
    try:
        return float(nn.init.calculate_gain(nonlinearity, a))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(
            f"unknown nonlinearity {nonlinearity!r}; known: linear, sigmoid, tanh, relu, leaky_relu, selu, {', '.join(_GAINS)}"
        ) from error


@torch.no_grad()
def _fill_uniform(weight: Tensor, std: float) -> Tensor:
    bound = math.sqrt(3.0) * std
    return weight.uniform_(-bound, bound)


@torch.no_grad()
def orthogonal_init(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill `weight` with a (semi-)orthogonal matrix times `gain`, in place; returned.

    Args:
        weight: (out, in, ...); trailing dimensions count as inputs.
        gain: singular values of the result.

    Raises:
        UsageError: fewer than two dimensions.

    *Numerics*: the QR decomposition is done in float32 at least (torch has none for half types) and its signs fixed, so the distribution is Haar's.
    A square linear layer keeps every norm exactly, at any depth.

    *Source*: Saxe, McClelland and Ganguli 2014; Mezzadri 2007 for the signs.

    >>> import torch
    >>> w = orthogonal_init(torch.empty(4, 4))
    >>> torch.allclose(w @ w.t(), torch.eye(4), atol=1e-6)
    True
    """
    fans_of_tensor(weight)  # refuses vectors
    if weight.numel() == 0:
        return weight
    rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    flat = torch.randn(rows, columns, dtype=wide, device=weight.device)
    q, r = torch.linalg.qr(flat.t() if rows < columns else flat)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    q = q.t() if rows < columns else q
    return weight.copy_((gain * q).reshape(weight.shape))


@torch.no_grad()
def spectral_norm_init(weight: Tensor, norm: float = 1.0) -> Tensor:
    """Scale `weight` so that its largest singular value, as a matrix (out, everything else), is `norm`, in place; returned.

    Zero weights stay zero. For a convolution as an operator, see `lipschitz_bounds`.

    >>> import torch
    >>> w = spectral_norm_init(torch.diag(torch.tensor([3.0, 4.0])))
    >>> w.diagonal()
    tensor([0.7500, 1.0000])
    """
    fans_of_tensor(weight)
    if weight.numel() == 0:
        return weight
    matrix = weight.reshape(weight.shape[0], -1)
    largest = torch.linalg.matrix_norm(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), 2)
    return weight.mul_(torch.where(largest > 0, norm / largest, torch.ones_like(largest)).to(weight.dtype))


# Weights that a call of `initialize` has filled: a second call leaves them alone unless it is told to overwrite.
_initialized: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

SCHEMES = ("xavier", "he", "orthogonal", "spectral")


@torch.no_grad()
def initialize(
    model: nn.Module,
    scheme: str = "he",
    nonlinearity: str = "relu",
    *,
    mode: str = "fan_in",
    embedding_std: float | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Initialise the linear, convolutional and embedding layers of a model, once each.

    Args:
        model: its other modules (norms, recurrent layers, own parameters) are left as they are.
        scheme: "xavier", "he", "orthogonal" or "spectral".
        nonlinearity: sets the gain (Xavier's is 1 for "linear").
        mode: fans for He.
        embedding_std: standard deviation of embeddings; the config's `initialization.embedding_std`; rows of `padding_idx` become 0.
        overwrite: whether weights that an earlier call filled are filled again.

    Returns:
        parameter name -> what was done: the scheme, "kept: tied to ...", "kept: initialised before", "kept: zero by design", "empty".

    *Numerics*: fans are the layer's own, also for grouped, transposed and strided convolutions. A weight that is exactly zero is taken to be
    meant so (a gate, a Fixup output) and kept. Tied weights are filled once, by the first layer that holds them. Biases become 0.

    Raises:
        UsageError: an unknown scheme, nonlinearity or mode.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> initialize(model)["0.weight"], initialize(model)["0.weight"]
    ('he', 'kept: initialised before')
    """
    if scheme not in SCHEMES:
        raise UsageError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    gain = gain_of(nonlinearity)
    done: dict[str, str] = {}
    owner: dict[int, str] = {}
    std = active().initialization.embedding_std if embedding_std is None else embedding_std
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag)):
            continue
        weight, key = module.weight, f"{name}.weight".lstrip(".")
        if id(weight) in owner:
            done[key] = f"kept: tied to {owner[id(weight)]}"
            continue
        owner[id(weight)] = key
        if weight.numel() == 0:
            done[key] = "empty"
        elif not overwrite and weight in _initialized:
            done[key] = "kept: initialised before"
        elif not overwrite and not bool(weight.any()):
            done[key] = "kept: zero by design"
        else:
            _fill(module, weight, scheme, gain, mode, std)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                bias.zero_()
            _initialized[weight] = True
            done[key] = "normal" if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else scheme
    return done


def _fill(module: nn.Module, weight: Tensor, scheme: str, gain: float, mode: str, embedding_std: float) -> None:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        weight.normal_(0.0, embedding_std)
        if module.padding_idx is not None:
            weight[module.padding_idx].zero_()
        return
    fans: Fans = fans_of(module)
    if scheme == "xavier":
        _fill_uniform(weight, gain * math.sqrt(1.0 / max(fans.of("fan_avg"), 1.0)))
    elif scheme == "he":
        weight.normal_(0.0, gain / math.sqrt(max(fans.of(mode), 1.0)))
    elif scheme == "orthogonal":
        orthogonal_init(weight, gain)
    else:
        weight.normal_(0.0, 1.0)
        spectral_norm_init(weight, gain)


class StableInitializer:
    """Initialisers of one weight under the audit's names, and of whole models.

    *Numerics*: standard deviations are exactly those of theory. The audited forms cap the standard deviation at 0.1, which for small
    layers kills the signal: ten layers leave 0.002 of it.
    """

    @staticmethod
    def xavier_uniform_stable(tensor: Tensor, gain: float = 1.0, fan_mode: str = "fan_avg") -> Tensor:
        """Fill with U(-b, b) of standard deviation gain * sqrt(1/fan), for fan_avg sqrt(2/(fan_in+fan_out)), in place; returned.

        Raises:
            UsageError: fewer than two dimensions, or an unknown mode. An empty tensor is left as it is.

        *Source*: Glorot and Bengio 2010, equation 16.

        >>> import torch
        >>> w = StableInitializer.xavier_uniform_stable(torch.empty(400, 400))
        >>> round(w.std().item() / (2 / 800) ** 0.5, 2)
        1.0
        """
        fan = fans_of_tensor(tensor).of(fan_mode)
        return tensor if tensor.numel() == 0 else _fill_uniform(tensor, gain / math.sqrt(fan))

    @staticmethod
    @torch.no_grad()
    def kaiming_normal_stable(tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "relu") -> Tensor:
        """Fill with N(0, gain**2 / fan), gain sqrt(2) for ReLU, in place; returned.

        Args:
            a: negative slope, for "leaky_relu".

        Raises:
            UsageError: fewer than two dimensions, an unknown mode or nonlinearity. An empty tensor is left as it is.

        *Source*: He et al. 2015, equation 10.

        >>> import torch
        >>> w = StableInitializer.kaiming_normal_stable(torch.empty(500, 200))
        >>> abs(w.std().item() / (2 / 200) ** 0.5 - 1) < 0.02
        True
        """
        fan = fans_of_tensor(tensor).of(mode)
        gain = gain_of(nonlinearity, a)
        return tensor if tensor.numel() == 0 else tensor.normal_(0.0, gain / math.sqrt(fan))

    @staticmethod
    @torch.no_grad()
    def residual_init(tensor: Tensor, depth: int, layer_idx: int) -> Tensor:
        """Fill with He's normal distribution times depth**-0.5 (the config's `initialization.residual_depth_power`), in place; returned.

        Args:
            tensor: the weight of a residual branch.
            depth: number of branches that are summed.
            layer_idx: which of them, from 0; each gets the same scale.

        Raises:
            UsageError: depth below 1, layer_idx outside [0, depth), fewer than two dimensions.

        *Numerics*: each of `depth` branches adds 1/depth of the stream's variance, (1 + 1/depth)**depth < e in all.

        >>> import torch
        >>> w = StableInitializer.residual_init(torch.empty(500, 200), depth=100, layer_idx=7)
        >>> abs(w.std().item() / ((2 / 200) ** 0.5 / 10) - 1) < 0.02
        True
        """
        if depth < 1 or not 0 <= layer_idx < depth:
            raise UsageError(f"residual_init: expected depth >= 1 and 0 <= layer_idx < depth; got depth={depth}, layer_idx={layer_idx}")
        fan = fans_of_tensor(tensor).of("fan_in")
        scale = depth ** active().initialization.residual_depth_power
        return tensor if tensor.numel() == 0 else tensor.normal_(0.0, scale * math.sqrt(2.0 / fan))

    @staticmethod
    def orthogonal(tensor: Tensor, gain: float = 1.0) -> Tensor:
        """See `orthogonal_init`."""
        return orthogonal_init(tensor, gain)

    @staticmethod
    def spectral(tensor: Tensor, norm: float = 1.0) -> Tensor:
        """See `spectral_norm_init`."""
        return spectral_norm_init(tensor, norm)

    @staticmethod
    def lsuv(model: nn.Module, data_batch: Any, target_var: float = 1.0) -> dict[str, float]:
        """See `lsuv_init`."""
        return lsuv_init(model, data_batch, target_var)

    @staticmethod
    def fixup(model: nn.Module) -> dict[str, str]:
        """See `fixup_init`."""
        return fixup_init(model)

    @staticmethod
    def rezero(model: nn.Module) -> list[str]:
        """See `rezero_init`."""
        return rezero_init(model)

    skipinit = rezero

    @staticmethod
    def initialize(model: nn.Module, scheme: str = "he", nonlinearity: str = "relu", **options: Any) -> dict[str, str]:
        """See `initialize`."""
        return initialize(model, scheme, nonlinearity, **options)

    @staticmethod
    def describe(model: nn.Module) -> list[dict[str, Any]]:
        """See `describe`."""
        return describe(model)
