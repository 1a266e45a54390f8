"""Residual branches that train without normalisation: Fixup, SkipInit, ReZero, depth-scaled."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from latent_drift.errors import UsageError
from latent_drift.stability.initialization.fans import fans_of

Scheme = Literal["rezero", "skipinit", "fixup", "scaled"]


class ResidualBranch(nn.Module):
    """x + alpha * branch(x), with the alpha of a scheme.

    Args:
        branch: the module whose output is added; same shape as its input.
        scheme: "rezero" or "skipinit": alpha is learnt from 0. "fixup": alpha is learnt from 1, with learnt scalar biases before and
            after; initialise the model with `fixup_init`. "scaled": alpha is depth**-0.5, fixed.
        depth: number of branches in the model, for "scaled".

    Raises:
        UsageError: an unknown scheme, or depth below 1.

    *Source*: ReZero: Bachlechner et al. 2020; SkipInit: De and Smith 2020; Fixup: Zhang, Dauphin and Ma 2019.

    >>> import torch
    >>> x = torch.randn(2, 4)
    >>> torch.equal(ResidualBranch(torch.nn.Linear(4, 4))(x), x)
    True
    """

    def __init__(self, branch: nn.Module, scheme: Scheme = "rezero", depth: int = 1) -> None:
        super().__init__()
        if scheme not in ("rezero", "skipinit", "fixup", "scaled"):
            raise UsageError(f"ResidualBranch: scheme must be rezero, skipinit, fixup or scaled; got {scheme!r}")
        if depth < 1:
            raise UsageError(f"ResidualBranch: depth must be at least 1; got {depth}")
        self.branch = branch
        self.scheme = scheme
        if scheme == "scaled":
            self.alpha: Tensor = nn.Buffer(torch.tensor(depth**-0.5))
        else:
            self.alpha = nn.Parameter(torch.tensor(1.0 if scheme == "fixup" else 0.0))
        if scheme == "fixup":
            self.bias_in = nn.Parameter(torch.zeros(()))
            self.bias_out = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        if self.scheme == "fixup":
            result: Tensor = x + self.alpha * self.branch(x + self.bias_in) + self.bias_out
        else:
            result = x + self.alpha * self.branch(x)
        return result


@torch.no_grad()
def fixup_init(model: nn.Module) -> dict[str, str]:
    """Fixup: in every `ResidualBranch` of the model, scale the inner layers by depth**(-1/(2m-2)) and zero the last one, in place.

    Args:
        model: holds L branches of m linear or convolutional layers each; layers outside of branches get He's initialisation, and
            the model's very last linear layer, if it is outside, zeros.

    Returns:
        weight name -> what it got.

    Raises:
        UsageError: the model has no ResidualBranch.

    *Numerics*: at the start every branch is 0, so the signal passes unchanged, and the first update changes the function by
    O(learning rate) at any depth.

    *Source*: Zhang, Dauphin and Ma, Fixup initialization, 2019, section 3.

    >>> from torch import nn
    >>> net = nn.Sequential(*[ResidualBranch(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "fixup") for _ in range(16)])
    >>> fixup_init(net)["0.branch.0.weight"], net[0].branch[2].weight.abs().max().item()
    ('he * 0.25', 0.0)
    """
    branches = [(name, module) for name, module in model.named_modules() if isinstance(module, ResidualBranch)]
    if not branches:
        raise UsageError("fixup_init: the model has no ResidualBranch; wrap its residual branches in ResidualBranch(branch, 'fixup')")
    done: dict[str, str] = {}
    inside: set[int] = set()
    depth = len(branches)
    for name, branch in branches:
        layers = [(n, m) for n, m in branch.branch.named_modules() if isinstance(m, (nn.Linear, _ConvNd))]
        inside |= {id(m) for _, m in layers}
        for index, (inner, layer) in enumerate(layers):
            prefix = ".".join(part for part in (name, "branch", inner, "weight") if part)
            if index == len(layers) - 1:
                layer.weight.zero_()
                done[prefix] = "0"
            else:
                scale = depth ** (-1.0 / (2 * len(layers) - 2))
                _he(layer, scale)
                done[prefix] = f"he * {scale:.4g}"
            _zero_bias(layer)
    outside = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, _ConvNd)) and id(m) not in inside]
    for index, (name, layer) in enumerate(outside):
        last = index == len(outside) - 1 and isinstance(layer, nn.Linear) and len(outside) > 1
        if last:
            layer.weight.zero_()
        else:
            _he(layer, 1.0)
        _zero_bias(layer)
        done[f"{name}.weight".lstrip(".")] = "0" if last else "he"
    return done


@torch.no_grad()
def rezero_init(model: nn.Module) -> list[str]:
    """Set every learnt alpha of "rezero" and "skipinit" branches to 0, so that the model starts as its skip path; names of the branches, in place.

    Raises:
        UsageError: the model has none.

    >>> net = nn.Sequential(ResidualBranch(nn.Linear(2, 2)))
    >>> rezero_init(net)
    ['0']
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, ResidualBranch) and m.scheme in ("rezero", "skipinit")]
    if not found:
        raise UsageError("rezero_init: the model has no ResidualBranch of scheme rezero or skipinit")
    for _, branch in found:
        branch.alpha.zero_()
    return [name for name, _ in found]


def _he(layer: nn.Module, scale: float) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if weight.numel():
        weight.normal_(0.0, scale * math.sqrt(2.0 / max(fans_of(layer).fan_in, 1.0)))


def _zero_bias(layer: nn.Module) -> None:
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.zero_()
