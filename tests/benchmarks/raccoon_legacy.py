"""The formulas of the published log classifier, rendered in the most direct way.

Written from `model.md` and `audit.md` alone, as what speed is measured against and as the negative control of tests: the plain
form must fail where the corrected one holds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from latent_drift.models.log_alphabet import LOG_CATEGORIES, log_char2idx, log_chars, log_vocab_size
from latent_drift.models.log_data import LOG_WORDS


class PlainLogDataset(Dataset):
    """One message at a time, one character at a time."""

    def __init__(self, n_samples: int, seq_len: int = 50, drift_point: int | None = None) -> None:
        self.n_samples, self.seq_len, self.drift_point = n_samples, seq_len, drift_point

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, idx: int) -> tuple[Tensor, int]:
        if self.drift_point and idx > self.drift_point:
            label = int(torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), 1).item())
        else:
            label = int(torch.randint(4, (1,)).item())
        words = LOG_WORDS[LOG_CATEGORIES[label]]
        text = words[int(torch.randint(len(words), (1,)).item())].ljust(self.seq_len, "_")[: self.seq_len]
        characters = [log_chars[int(torch.randint(log_vocab_size, (1,)).item())] if torch.rand(1).item() < 0.1 else c for c in text]
        return torch.tensor([log_char2idx[c] for c in characters]), label


class PlainSlicedEppsPulley(nn.Module):
    """The statistic with its full (N, K, 17) tensors, averaged over random directions."""

    def __init__(self, num_slices: int = 64, t_max: float = 3.0, n_points: int = 17) -> None:
        super().__init__()
        t = torch.linspace(0, t_max, n_points)
        weights = torch.full((n_points,), 2 * t_max / (n_points - 1))
        weights[0] = weights[-1] = t_max / (n_points - 1)
        phi = torch.exp(-t.square() / 2)
        self.num_slices, self.t, self.phi, self.weights, self.step = num_slices, t, phi, weights * phi, 0

    def forward(self, z: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.step)
        self.step += 1
        directions = torch.randn(z.shape[-1], self.num_slices, generator=generator)
        directions = directions / (directions.norm(p=2, dim=0) + 1e-12)
        angle = (z @ directions).unsqueeze(-1) * self.t
        error = (angle.cos().mean(0) - self.phi).square() + angle.sin().mean(0).square()
        return ((error * self.weights).sum(-1) * z.shape[0]).mean()


class PlainDynamics(nn.Module):
    def __init__(self, latent: int, hidden: int, sigma_min: float = 1e-4, sigma_max: float = 1.0) -> None:
        super().__init__()
        self.bounds = math.log(sigma_min), math.log(sigma_max)
        self.drift_net = nn.Sequential(nn.Linear(latent + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, latent))
        self.log_diffusion_net = nn.Sequential(nn.Linear(latent + 1, hidden), nn.SiLU(), nn.Linear(hidden, latent))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, gain=0.1)
                nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([z, t], dim=-1)
        return self.drift_net(x), torch.exp(torch.clamp(self.log_diffusion_net(x), *self.bounds))


def plain_solve_sde(dynamics: nn.Module, z0: Tensor, t_span: Tensor) -> Tensor:
    path = [z0]
    z = z0
    for i in range(len(t_span) - 1):
        dt = t_span[i + 1] - t_span[i]
        drift, diffusion = dynamics(z, t_span[i].expand(z.shape[0], 1))
        z = z + drift * dt + diffusion * torch.sqrt(dt) * torch.randn_like(z)
        path.append(z)
    return torch.stack(path, dim=1)


class PlainCoupling(nn.Module):
    def __init__(self, dim: int, hidden: int, mask: Tensor, time_dim: int = 32, scale_range: float = 3.0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.scale_range = scale_range
        self.transform_net = nn.Sequential(
            nn.Linear(dim + time_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * dim)
        )

    def forward(self, x: Tensor, time_feat: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        kept = x * self.mask
        scale, shift = self.transform_net(torch.cat([kept, time_feat], dim=-1)).chunk(2, dim=-1)
        scale = self.scale_range * torch.tanh(scale / self.scale_range)
        if reverse:
            y = kept + (1 - self.mask) * ((x - shift) * torch.exp(-scale))
            return y, -(scale * (1 - self.mask)).sum(-1)
        y = kept + (1 - self.mask) * (x * torch.exp(scale) + shift)
        return y, (scale * (1 - self.mask)).sum(-1)


class PlainFlow(nn.Module):
    def __init__(self, latent: int, hidden: int, num_layers: int = 4, time_dim: int = 32) -> None:
        super().__init__()
        self.freqs = torch.logspace(0, 3, time_dim // 2)
        masks = [((torch.arange(latent) + parity) % 2).float() for parity in range(num_layers)]
        self.flows = nn.ModuleList([PlainCoupling(latent, hidden, mask, time_dim) for mask in masks])

    def forward(self, z: Tensor, t: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        angle = t * self.freqs
        features = torch.cat([angle.sin(), angle.cos()], dim=-1)
        log_det = torch.zeros(z.shape[0])
        for layer in reversed(self.flows) if reverse else self.flows:
            z, one = layer(z, features, reverse)
            log_det = log_det + one
        return z, log_det


class PlainMemory:
    """Lists, a linear search for the worst, and numpy's choice."""

    def __init__(self, max_size: int = 10000) -> None:
        self.buffer: list[object] = []
        self.scores: list[float] = []
        self.max_size = max_size

    def add(self, trajectory: object, score: float) -> None:
        self.buffer.append(trajectory)
        self.scores.append(score)
        if len(self.buffer) > self.max_size:
            worst = int(np.argmin(self.scores))
            del self.buffer[worst], self.scores[worst]

    def sample(self, n: int) -> list[object]:
        scores = np.array(self.scores)
        probabilities = np.exp(scores - scores.max())
        probabilities = probabilities / probabilities.sum() + 1e-10
        probabilities = probabilities / probabilities.sum()
        chosen = np.random.choice(len(self.buffer), n, replace=n > len(self.buffer), p=probabilities)
        return [self.buffer[i] for i in chosen]


class PlainLogClassifier(nn.Module):
    def __init__(self, vocab: int = 40, classes: int = 4, latent: int = 32, hidden: int = 64, embed: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(vocab, embed), nn.Linear(embed, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.enc_mean, self.enc_logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.dynamics = PlainDynamics(latent, hidden)
        self.flow = PlainFlow(latent, hidden)
        self.classifier = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, classes))
        self.latent_test = PlainSlicedEppsPulley()
        self.z0_mean, self.z0_logvar = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(tokens).mean(1)
        return self.enc_mean(h), self.enc_logvar(h)

    def forward(self, tokens: Tensor, labels: Tensor, loss_weights: tuple[float, float, float] = (1.0, 0.1, 0.01)) -> tuple[Tensor, dict]:
        mean, logvar = self.encode(tokens)
        z0 = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        z = plain_solve_sde(self.dynamics, z0, torch.linspace(0, 0.1, 3))[:, -1]
        z, _ = self.flow(z, torch.full((z.shape[0], 1), 0.5))
        logits = self.classifier(z)
        class_loss = F.cross_entropy(logits, labels)
        var_p = torch.exp(self.z0_logvar)
        ratio = (torch.exp(logvar) + (mean - self.z0_mean).square()) / (var_p + 1e-8)
        kl_loss = 0.5 * (self.z0_logvar - logvar + ratio - 1).mean()
        ep_loss = self.latent_test(z)
        loss = loss_weights[0] * class_loss + loss_weights[1] * kl_loss + loss_weights[2] * ep_loss
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return loss, {"class_loss": class_loss.item(), "kl_loss": kl_loss.item(), "ep_loss": ep_loss.item(), "accuracy": accuracy.item()}
