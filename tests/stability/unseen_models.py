"""Architectures that the diagnosis was not tuned on: faults planted in them, and healthy ones, written as people write them (functional
activations, hand-written attention, recurrent layers, losses of their own)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[nn.Module, Any, Any, dict[str, Any]]


class FunctionalConvNet(nn.Module):
    """Convolutions, functional ReLUs and pooling, a linear head."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(16 * 16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.relu(self.conv2(x))
        x = F.dropout(torch.relu(self.fc1(x.flatten(1))), 0.2, self.training)
        return self.fc2(x)


class ReluRNN(nn.Module):
    """A plain recurrent network read at its last step."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(4, hidden, nonlinearity="relu", batch_first=True), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.head(output[:, -1])


class LSTMClassifier(nn.Module):
    """Tokens, two LSTM layers, the last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(20, 16), nn.LSTM(16, 24, num_layers=2, batch_first=True), nn.Linear(24, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(tokens))
        return self.head(hidden[-1])


class ConvAutoencoder(nn.Module):
    """Strided convolutions down, transposed ones up, functional activations; returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        code = F.elu(self.down2(F.elu(self.down1(x))))
        result = self.up2(F.elu(self.up1(code)))
        return F.mse_loss(result, x), {"reconstruction": result.detach()}


class Siamese(nn.Module):
    """Two views through one encoder; a contrastive loss over the batch, or a stop-gradient on one side with a predictor."""

    def __init__(self, kind: str = "contrastive") -> None:
        super().__init__()
        self.kind = kind
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        za, zb = self.encoder(a), self.encoder(b)
        if self.kind == "stop-gradient":
            return -F.cosine_similarity(self.predictor(za), zb.detach()).mean()
        if self.kind == "detached":
            za, zb = za.detach(), zb.detach()
        za, zb = F.normalize(self.predictor(za), dim=-1), F.normalize(self.predictor(zb), dim=-1)
        return F.cross_entropy(za @ zb.t() / 0.2, torch.arange(len(za)))


class HandWrittenAttention(nn.Module):
    """Single-head attention by matrix products and a functional softmax."""

    def __init__(self, width: int, scaled: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.scale = width**-0.5 if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-2, -1) * self.scale).masked_fill(mask, float("-inf"))
        return F.softmax(scores, dim=-1) @ v


class LanguageModel(nn.Module):
    """A causal transformer with tied embeddings; logits (batch, time, vocabulary)."""

    def __init__(self, scaled: bool = True, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(16, width), nn.Parameter(0.02 * torch.randn(12, width))
        self.attention = nn.ModuleList(HandWrittenAttention(width, scaled) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.head = nn.Linear(width, 16, bias=False)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x))


class SegmentationNet(nn.Module):
    """A small U-shaped network with one class map per pixel; most pixels are background."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.deep, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 3, 1)
        self.group = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.group(self.inner(x)))
        deep = F.interpolate(F.relu(self.deep(first)), scale_factor=2.0)
        return self.out(torch.cat([first, deep], 1))


# --- data --------------------------------------------------------------------------------------------------


def images(n: int = 120) -> tuple[Tensor, Tensor]:
    """A bright stripe whose row is the class."""
    y = torch.randint(0, 3, (n,))
    x = torch.randn(n, 1, 8, 8) * 0.3
    x[torch.arange(n), 0, y * 2, :] += 1.0
    return x, y


def series(n: int = 120, length: int = 40) -> tuple[Tensor, Tensor]:
    """The class is the channel with the largest mean."""
    x, y = torch.randn(n, length, 4), torch.randint(0, 3, (n,))
    x[torch.arange(n), :, y] += 0.5
    return x, y


def tokens(n: int = 128) -> tuple[Tensor, Tensor]:
    """Whether token 3 occurs among the first few."""
    x = torch.randint(4, 20, (n, 15))
    y = torch.randint(0, 2, (n,))
    x[y == 1, torch.randint(0, 15, (int((y == 1).sum()),))] = 3
    return x, y


def text(n: int = 48) -> tuple[Tensor, Tensor]:
    """Counting sequences modulo 16 with a step of their own: inputs and next tokens."""
    start, step = torch.randint(0, 16, (n, 1)), torch.randint(1, 4, (n, 1))
    x = (start + step * torch.arange(11)) % 16
    return x[:, :-1], x[:, 1:]


def pairs(n: int = 64) -> tuple[Tensor, Tensor]:
    """Two noisy views."""
    x = torch.randn(n, 16)
    return x + 0.2 * torch.randn(n, 16), x + 0.2 * torch.randn(n, 16)


def maps(n: int = 24) -> tuple[Tensor, Tensor]:
    """A bright square (class 1) or a dark one (class 2) on background."""
    y = torch.zeros(n, 8, 8, dtype=torch.long)
    for row in range(n):
        i, j = torch.randint(0, 6, (2,)).tolist()
        y[row, i : i + 2, j : j + 2] = 1 + row % 2
    x = torch.randn(n, 1, 8, 8) * 0.2 + torch.tensor([0.0, 1.5, -1.5])[y][:, None]
    return x, y


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Next-token cross entropy."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# --- planted faults ----------------------------------------------------------------------------------------


def _dead() -> Case:
    model = FunctionalConvNet()
    with torch.no_grad():
        model.conv2.bias.fill_(-20.0)
    return model, images(), F.cross_entropy, {}


def _exploding() -> Case:
    model = ReluRNN()
    with torch.no_grad():
        nn.init.orthogonal_(model.rnn.weight_hh_l0, 2.0)
    return model, series(), F.cross_entropy, {}


def _raw_pixels() -> Case:
    return ConvAutoencoder(), torch.randint(0, 256, (32, 1, 8, 8)).float(), None, {}


def _saturated() -> Case:
    model = LanguageModel(scaled=False)
    with torch.no_grad():
        for attention in model.attention:
            attention.query.weight.mul_(12)
            attention.key.weight.mul_(12)
    return model, text(), text_loss, {}


def _rate() -> Case:
    model = LSTMClassifier()
    return model, tokens(), F.cross_entropy, {"optimizer": torch.optim.Adam(model.parameters(), lr=3.0)}


def _not_in_optimizer() -> Case:
    model = LanguageModel()
    kept = [p for name, p in model.named_parameters() if not name.startswith("mlp.1")]
    return model, text(), text_loss, {"optimizer": torch.optim.AdamW(kept, lr=1e-3)}


def _bad_target() -> Case:
    x, _ = images(64)
    target = x.flatten(1).mean(1, keepdim=True)
    target[11] = math.inf
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)), (x, target), F.mse_loss, {}


# kind, part of the layer's name, builder
PLANTED: dict[str, tuple[str, str, Callable[[], Case]]] = {
    "convnet, functional ReLU dead": ("dead_relu", "conv2", _dead),
    "ReLU RNN, recurrent weights of norm 2": ("exploding", "rnn", _exploding),
    "autoencoder on raw pixels": ("unscaled_inputs", "inputs", _raw_pixels),
    "siamese, both sides detached": ("detached_graph", "encoder", lambda: (Siamese("detached"), pairs(), None, {})),
    "transformer, unscaled attention": ("saturated_softmax", "attention", _saturated),
    "LSTM, learning rate of 3": ("learning_rate", "optimizer", _rate),
    "transformer, a block missing in the optimizer": ("frozen_layer", "mlp.1", _not_in_optimizer),
    "regression, an infinite target": ("nonfinite_data", "labels", _bad_target),
}

HEALTHY: dict[str, Callable[[], Case]] = {
    "convnet, functional": lambda: (FunctionalConvNet(batch_norm=True), images(), F.cross_entropy, {}),
    "ReLU RNN": lambda: (ReluRNN(), series(), F.cross_entropy, {}),
    "LSTM": lambda: (LSTMClassifier(), tokens(), F.cross_entropy, {}),
    "autoencoder": lambda: (ConvAutoencoder(), torch.rand(32, 1, 8, 8), None, {}),
    "siamese, contrastive": lambda: (Siamese(), pairs(), None, {}),
    "siamese, stop-gradient": lambda: (Siamese("stop-gradient"), pairs(), None, {}),
    "causal transformer": lambda: (LanguageModel(), text(), text_loss, {}),
    "segmentation": lambda: (SegmentationNet(), maps(), F.cross_entropy, {}),
}
