"""Straightforward renderings of the latent ODE's formulas: what the fast forms are compared with, and negative controls.

Written from the formulas (audit.md, model.md), not from any script: full (N, K, T) tensors for the statistic, float32
throughout, a full pass for every sampled token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from latent_drift.models.alphabet import char2idx
from latent_drift.models.latent_ode import DeterministicLatentODE


def naive_epps_pulley(x: Tensor, t: Tensor, weights: Tensor) -> Tensor:
    """N sum_j w_j |empirical cf - normal cf|^2 with the whole (*, N, K, T) tensor: (*, N, K) to (*, K)."""
    angles = x.unsqueeze(-1) * t
    error = (angles.cos().mean(-3) - torch.exp(-0.5 * t.square())).square() + angles.sin().mean(-3).square()
    return (error @ weights) * x.shape[-2]


def trapezoid_grid(t_max: float = 3.0, n_points: int = 17, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The grid and the weights: trapezoid, doubled for the mirrored half, times exp(-t^2 / 2)."""
    t = torch.linspace(0.0, t_max, n_points, dtype=dtype)
    weights = torch.full_like(t, 2.0 * t_max / (n_points - 1))
    weights[0] = weights[-1] = t_max / (n_points - 1)
    return t, weights * torch.exp(-0.5 * t.square())


class NaiveSlicing(nn.Module):
    """The sliced statistic as published: float32 directions, times N, `global_step` advancing whatever the mode."""

    def __init__(self, num_slices: int) -> None:
        super().__init__()
        self.num_slices = num_slices
        self.register_buffer("global_step", torch.zeros((), dtype=torch.long))
        for name, value in zip(("t", "weights"), trapezoid_grid(), strict=True):
            self.register_buffer(name, value)

    def directions(self, dim: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.global_step))
        a = torch.randn((dim, self.num_slices), generator=generator)
        return a / (a.norm(p=2, dim=0) + 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        a = self.directions(x.shape[-1])
        self.global_step += 1
        return naive_epps_pulley(x @ a, self.t, self.weights).mean()


class NaiveAttention(nn.Module):
    """Attention by einsum over the parameters of a `QKVAttention`, with a masked softmax."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = attention.w_q, attention.w_k, attention.w_v, attention.w_o
        self.causal = attention.causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ntc,hdc->nhtd", x, w) for w in (self.w_q, self.w_k, self.w_v))
        scores = torch.einsum("nhtd,nhsd->nhts", q, k) / math.sqrt(q.shape[-1])
        if self.causal:
            length = x.shape[1]
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        y = torch.einsum("nhts,nhsd->nthd", scores.softmax(-1), v)
        return y.flatten(2) @ self.w_o


def naive_loss(model: DeterministicLatentODE, slicing: NaiveSlicing, tokens: Tensor, loss_weights: tuple[float, float, float]) -> Tensor:
    """The published objective over the parts of a `legacy_compat` model: two statistics a step, each times N."""
    z = model.encoder(tokens)
    steps = z.shape[1] - 1
    times = torch.linspace(0.0, 1.0, steps + 1)[:-1].view(1, steps, 1).expand(z.shape[0], -1, -1)
    increment = model.p_ode(z[:, :-1], times) * (1.0 / steps)
    ode_reg = (increment - (z[:, 1:] - z[:, :-1])).abs().mean()
    path = torch.cat([z[:, :1], z[:, :-1].detach() + increment], dim=1)
    recon = F.cross_entropy(model.p_observe.get_logits(path, tokens).flatten(0, 1), tokens.flatten())
    dim = z.shape[-1]
    latent_reg = 0.5 * (slicing(z.reshape(-1, dim)) + slicing(path.reshape(-1, dim)))
    return loss_weights[0] * recon + loss_weights[1] * latent_reg + loss_weights[2] * ode_reg


@torch.no_grad()
def naive_samples(model: DeterministicLatentODE, seq_len: int, n_samples: int) -> list[Tensor]:
    """Two groups of sequences along paths from N(0, I), a full decoder pass a token."""
    groups = []
    for starts in (1, n_samples):
        z = torch.randn(starts, model.latent_size).expand(n_samples, -1)
        path, dt = [z], 1.0 / (seq_len - 1)
        for i in range(seq_len - 1):
            z = z + model.p_ode(z, torch.tensor(i * dt)) * dt
            path.append(z)
        latents = torch.stack(path, dim=1)
        tokens = torch.zeros(n_samples, seq_len, dtype=torch.long)
        for position in range(seq_len):
            logits = model.p_observe.get_logits(latents, tokens)[:, position]
            tokens[:, position] = torch.distributions.Categorical(logits=logits).sample()
        groups.append(tokens)
    return groups


class NaiveSyntheticTargets(Dataset[Tensor]):
    """One sequence an access, drawn when asked for, whatever the index."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, idx: int) -> Tensor:
        letter = int(torch.randint(1, 27, ()))
        line = torch.zeros(64, dtype=torch.long)
        start = int(torch.randint(0, 57, ()))
        line[start : start + 8] = letter
        line[torch.rand(64) < 1 / 16] = char2idx["!"]
        return torch.cat([torch.tensor([char2idx["?"], letter, char2idx[">"]]), line])
