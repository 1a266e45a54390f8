"""The "Raccoon": a classifier of log messages over a latent SDE and a flow, which goes on learning from its stream."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.config import StabilityConfig, load
from latent_drift.errors import UsageError
from latent_drift.models.continual import ContinualUpdate, LegacyContinualUpdate
from latent_drift.models.coupling_flow import RaccoonFlow
from latent_drift.models.distributed import batch_noise_like
from latent_drift.models.goodness_of_fit import FastEppsPulley
from latent_drift.models.plain_layers import is_unobserved
from latent_drift.models.position_windows import direct_windowed_means, window_count, windowed_means
from latent_drift.models.raccoon_dynamics import RaccoonDynamics
from latent_drift.models.replay_memory import RaccoonMemory
from latent_drift.models.sizes import require_size
from latent_drift.models.small_kl import small_kl
from latent_drift.models.small_sample import SmallSampleSlicing
from latent_drift.models.soft_bound import soft_bound
from latent_drift.numerics.bounds import soft_clamp
from latent_drift.numerics.gaussian import kl_divergence
from latent_drift.numerics.limits import FLOAT_DTYPES
from latent_drift.solvers.sde import solve_sde

SDE_TIMES: Final = (0.0, 0.05, 0.1)
"""Times of the latent SDE's grid."""

FLOW_TIME: Final = 0.5
"""Time at which the flow is evaluated."""

NUM_SLICES: Final = 16
"""Random directions of the test of normality; they change with every step."""

LEGACY_NUM_SLICES: Final = 64
"""As many as published, by the reading that both models had the latent ODE's default. The number decides the spread of the published ep_loss
over directions, not its mean, and no key or shape of the state."""

FARTHEST_IN_FLOAT16: Final = 2048.0
"""Where latents end for a classifier in float16 (they are left alone up to half of it): a sum over 64 of them with weights of 0.4 is still finite."""

UNLABELLED: Final = -100
"""The label that `cross_entropy` leaves out: such a message shapes the latents and is classified, but teaches no class."""

WIDEST_LOG_VARIANCE: Final = 4.0
"""Largest log-variance of posterior and prior, where the config does not ask for less.

Noise of 7.4 times the standard normal prior's drowns a latent already, and a mean can still outgrow it, so that a model whose
log-variance was pushed there goes on learning."""


class RaccoonLogClassifier(nn.Module):
    """Log messages to categories: characters -> mean features -> N(mean, exp(logvar)) -> SDE over [0, 0.1] -> flow -> classifier.

    Features are means over windows of positions (`position_windows`), so that a word at the start of a message is more than its letters.

    In training mode the latent is sampled and the SDE has its noise. In evaluation mode both are left out: the same path from
    the mean, deterministic. `predict_logits` does so in either mode.

    Args:
        vocab_size: number of characters.
        num_classes: number of categories.
        latent_dim, hidden_dim, embed_dim: sizes.
        memory_size: capacity of the replay memory.
        adaptation_rate: learning rate of `continuous_update`; the attribute may be changed at any time.
        config: of the numerics; the default one if None. Bounds of log-variances and of the flow come from it.
        legacy_compat: as published, and needed for the predictions of published weights: means over all positions, unbounded
            log-variances and a KL with 1e-8 in its denominator, clamped log-diffusion, the statistic multiplied by the batch size, noise in
            evaluation too, and a continual update that starts at 32 messages, scores a batch as one, keeps the most confident
            and leaves memory and optimizer out of the state.

    Raises:
        UsageError: a size that is not positive, or a rate that is not.

    *Numerics*: all weights may be float64, float32, bfloat16 or float16, with or without autocast; losses are formed in float32 or wider.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        latent_dim: int = 32,
        hidden_dim: int = 64,
        embed_dim: int = 32,
        memory_size: int = 5000,
        adaptation_rate: float = 1e-4,
        *,
        config: StabilityConfig | None = None,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        owner = "RaccoonLogClassifier"
        self.vocab_size = require_size(vocab_size, "vocab_size", owner)
        self.num_classes = require_size(num_classes, "num_classes", owner)
        self.latent_dim = require_size(latent_dim, "latent_dim", owner)
        self.hidden_dim = require_size(hidden_dim, "hidden_dim", owner)
        self.embed_dim = require_size(embed_dim, "embed_dim", owner)
        if not 0.0 <= adaptation_rate < math.inf:
            raise UsageError(f"{owner}: adaptation_rate must be finite and not negative; got {adaptation_rate}")
        self.adaptation_rate = adaptation_rate
        self.legacy_compat = legacy_compat
        self.config = config or load()
        self._logvar_range = _logvar_ranges(self.config)
        self._windows = 0 if legacy_compat else window_count(hidden_dim)
        self.encoder = nn.Sequential(
            nn.Embedding(vocab_size, embed_dim),
            nn.Linear(embed_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        self.enc_mean = nn.Linear(hidden_dim, latent_dim)
        self.enc_logvar = nn.Linear(hidden_dim, latent_dim)
        self.dynamics = RaccoonDynamics(latent_dim, hidden_dim, legacy_compat=legacy_compat)
        scale = self.config.latent.flow_log_scale
        self.flow = RaccoonFlow(latent_dim, hidden_dim, max_log_scale=math.inf if scale == "none" else scale, legacy_compat=legacy_compat)
        self.classifier = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, num_classes))
        self.latent_test = SmallSampleSlicing(
            FastEppsPulley(per_sample=not legacy_compat), LEGACY_NUM_SLICES if legacy_compat else NUM_SLICES, legacy_compat=legacy_compat
        )
        self.memory = RaccoonMemory(max_size=memory_size, legacy_compat=legacy_compat)
        self.z0_mean = nn.Parameter(torch.zeros(latent_dim))
        self.z0_logvar = nn.Parameter(torch.zeros(latent_dim))
        self._continual = LegacyContinualUpdate() if legacy_compat else ContinualUpdate()

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the initial latent, both (B, latent_dim), of tokens (B, L); a message without characters has features 0.

        Raises:
            IndexError: a token outside the vocabulary; the message names it.
            UsageError: tokens are not (B, L) integers.
        """
        features = self._features(tokens)
        mean: Tensor = self.enc_mean(features)
        logvar: Tensor = self.enc_logvar(features)
        return mean, self._bounded_logvar(logvar)

    def sample_latent(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """A draw from N(mean, exp(logvar)), shape and dtype of `mean`; in evaluation mode the mean itself.

        *Numerics*: log-variances of `encode` are used as they are; one from elsewhere that lies beyond all of those is bounded, with a gradient.
        """
        if self.training or self.legacy_compat:
            if not self.legacy_compat:
                lower, upper = self._logvar_range[logvar.dtype]
                logvar = soft_bound(logvar, lower - 0.5 * math.pi, upper + 0.5 * math.pi)
            return mean + torch.exp(0.5 * logvar) * batch_noise_like(mean)
        return mean

    def classify(self, z: Tensor) -> Tensor:
        """Logits (B, num_classes) of latents (B, latent_dim) at the end of their path, that is behind SDE and flow."""
        if not self.legacy_compat and _computed_in(z) == torch.float16:
            z = soft_clamp(z, -FARTHEST_IN_FLOAT16, FARTHEST_IN_FLOAT16, margin=0.5 * FARTHEST_IN_FLOAT16)
        logits: Tensor = self.classifier(z)
        return logits

    def predict_logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_classes) of messages (B, L) along the path of training without its noise, in either mode; differentiable."""
        mean, _ = self.encode(tokens)
        return self.classify(self._travel(mean, noisy=False)[0])

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> Tensor:
        """The category of each message: long (B,)."""
        return self.predict_logits(tokens).argmax(dim=-1)

    def forward(
        self, tokens: Tensor, labels: Tensor, loss_weights: tuple[float, float, float] = (1.0, 0.1, 0.01)
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics of a batch.

        Args:
            tokens: (B, L), integer.
            labels: (B,), integer, each in [0, num_classes) or -100 for none; where no message of a batch has one, class_loss is 0.
            loss_weights: of the classification, the KL to the learned prior, and the shape of the final latents.

        Returns:
            The loss, a scalar, the weighted sum of class_loss (nats), kl_loss (nats per latent dimension) and ep_loss (the Epps-Pulley
            distance of the final latents from N(0, I), plus the squared log-volume per dimension of the flow); and these, accuracy and
            logits (B, num_classes), all detached. An empty batch gives exactly 0 with a graph.

        Raises:
            IndexError: a token or label out of range.
            UsageError: shapes that do not fit.
        """
        mean, logvar = self.encode(tokens)
        if labels.shape != tokens.shape[:1]:
            raise UsageError(f"RaccoonLogClassifier: labels must have shape ({tokens.shape[0]},), one a message; got {tuple(labels.shape)}")
        z, log_det = self._travel(self.sample_latent(mean, logvar), noisy=self.training or self.legacy_compat)
        logits = self.classify(z)
        if tokens.shape[0] == 0:
            nothing = logits.float().sum() + logvar.float().sum()
            zero = nothing.detach()
            return nothing, {"class_loss": zero, "kl_loss": zero, "ep_loss": zero, "accuracy": zero, "logits": logits.detach()}
        labels = labels.to(torch.long)
        class_loss = F.cross_entropy(logits.to(_loss_dtype(logits)), labels, ignore_index=UNLABELLED)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and int(labels.max()) == UNLABELLED:
            class_loss = logits.to(class_loss.dtype).sum() * 0.0  # a mean over no label would be NaN
        kl_loss = self._kl(mean, logvar)
        ep_loss = self.latent_test(z)
        if not self.legacy_compat:
            ep_loss = torch.add(ep_loss, log_det.to(ep_loss.dtype).square().mean(), alpha=1.0 / self.latent_dim**2)
        weighted = class_loss if loss_weights[0] == 1.0 else class_loss * loss_weights[0]
        loss = torch.add(torch.add(weighted, kl_loss, alpha=loss_weights[1]), ep_loss, alpha=loss_weights[2])
        accuracy = torch.mean(logits.detach().argmax(dim=-1) == labels, dtype=class_loss.dtype)
        return loss, {
            "class_loss": class_loss.detach(),
            "kl_loss": kl_loss.detach(),
            "ep_loss": ep_loss.detach(),
            "accuracy": accuracy,
            "logits": logits.detach(),
        }

    def continuous_update(self, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        """Learn from messages (B, L) with labels (B,) as they arrive, together with remembered ones.

        Returns:
            loss, grad_norm (before clipping), accuracy on the messages before learning from them, and skipped (1.0 if nothing was
            learned: an empty batch, or a loss or gradient that is not finite).
        """
        return self._continual.update(self, tokens, labels)

    def _features(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise UsageError(f"RaccoonLogClassifier: tokens must be integers of shape (B, L); got {tuple(tokens.shape)} of {tokens.dtype}")
        self._require_known(tokens)
        if tokens.numel() < self.vocab_size:
            return direct_windowed_means(self.encoder(tokens), self._windows)
        table = self._character_features(tokens.device)
        return windowed_means(tokens.to(torch.long), table, self._windows)

    def _character_features(self, device: torch.device) -> Tensor:
        """What the encoder says of every character of the alphabet, (V, hidden_dim)."""
        encoder = self.encoder
        embedding = encoder[0]
        features: Tensor
        if is_unobserved(encoder, nn.Sequential) and is_unobserved(embedding, nn.Embedding) and embedding.max_norm is None:
            features = embedding.weight  # looking up all rows in order gives the table itself
            for layer in list(encoder)[1:]:
                features = layer(features)
            return features
        features = encoder(torch.arange(self.vocab_size, device=device))
        return features

    def _require_known(self, tokens: Tensor) -> None:
        if tokens.numel() == 0 or torch.compiler.is_compiling():
            return
        lowest, highest = torch.aminmax(tokens)
        if tokens.device.type != "cpu":
            torch._assert_async((lowest >= 0) & (highest < self.vocab_size))  # reading them would wait for the device
            return
        if int(lowest) < 0 or int(highest) >= self.vocab_size:
            unknown = int(tokens[(tokens < 0) | (tokens >= self.vocab_size)][0])
            raise IndexError(
                f"token {unknown} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1}); "
                "encode messages with encode_log, which maps unknown characters to 0"
            )

    def _bounded_logvar(self, logvar: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if self.legacy_compat:
            return logvar
        return soft_bound(logvar, *self._logvar_range[dtype or logvar.dtype])

    def _travel(self, z0: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
        """The latent behind SDE and flow, and the flow's log-determinant (B,)."""
        if self.legacy_compat and not torch.compiler.is_compiling():
            times = torch.linspace(SDE_TIMES[0], SDE_TIMES[-1], len(SDE_TIMES), device=z0.device)
            z = solve_sde(self.dynamics, z0, times)[:, -1]
        elif noisy:
            z = self.dynamics.travel(z0, SDE_TIMES, [batch_noise_like(z0) for _ in SDE_TIMES[1:]])
        else:
            z = z0
            for t0, t1 in pairwise(SDE_TIMES):
                z = z + self.dynamics.drift(z, z.new_full((z.shape[0], 1), t0)) * (t1 - t0)
        z, log_det = self.flow(z, FLOW_TIME)
        return z, log_det

    def _kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """The mean over batch and latent dimensions of KL(N(mean, exp(logvar)) || learned prior), in nats."""
        if self.legacy_compat:
            ratio = (torch.exp(logvar) + (mean - self.z0_mean).square()) / (torch.exp(self.z0_logvar) + 1e-8)
            return 0.5 * (self.z0_logvar - logvar + ratio - 1).mean()
        # Within the posterior's range: under float16 autocast the gradient of the means, 2 d exp(-z0_logvar), is float16.
        z0_logvar = self._bounded_logvar(self.z0_logvar, mean.dtype)
        if mean.dtype == torch.float64 or mean.device.type == "mps":  # wider than float64 there is nothing, and mps has no float64
            return kl_divergence(mean, logvar, self.z0_mean, z0_logvar, dtype=_loss_dtype(mean)).mean()
        if mean.dtype == logvar.dtype == z0_logvar.dtype == self.z0_mean.dtype == torch.float32:
            return small_kl(mean, logvar, self.z0_mean, z0_logvar).to(torch.float32)
        # exp(d) - 1 - d cancels near d = 0. In float64 what is lost is below 1e-16 |d|, and the terms of half and single precision
        # differences stay >= 0: the same values as kl_divergence for a quarter of its kernel calls. The bounds keep exp(d) below e**34.
        z0_logvar = _within_range(z0_logvar)
        difference = _within_range(logvar) - z0_logvar
        distance = _within_range(mean - self.z0_mean).square() * torch.exp(-z0_logvar)
        return 0.5 * (torch.expm1(difference) - difference + distance).mean().to(_loss_dtype(mean))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Only once there is something: before, the keys are those of the published model.
        if not self.legacy_compat and (len(self.memory) or self._continual.started):
            file = io.BytesIO()
            torch.save({"memory": self.memory.state_dict(), "continual": self._continual.state_dict()}, file)
            destination[prefix + _EXTRA_STATE] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict({k: v for k, v in state_dict.items() if k != prefix + _EXTRA_STATE}, prefix, *args, **kwargs)
        saved = state_dict.get(prefix + _EXTRA_STATE)
        if saved is not None:
            state = torch.load(io.BytesIO(saved.cpu().numpy().tobytes()), weights_only=True, map_location="cpu")
            self.memory.load_state_dict(state["memory"])
            self._continual.load_state_dict(state["continual"])


_EXTRA_STATE: Final = "_extra_state"  # torch's own name for state that is no parameter or buffer; a byte tensor, so that copies and moves work


def _within_range(x: Tensor) -> Tensor:
    """`x` in float64, with a gradient that its own dtype can hold.

    Means 1e4 away from the prior's have a KL of 1e8, and gradients in float16 end at 65,504."""
    wide = x.double()
    if x.dtype == torch.float16 and wide.requires_grad and not torch.compiler.is_compiling():
        limit = torch.finfo(x.dtype).max / max(1, x.shape[0] if x.dim() > 1 else 1)  # what a sum over the batch cannot exceed
        wide.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return wide


def _computed_in(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer will see `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if x.dtype != torch.float64 and torch.is_autocast_enabled(kind) else x.dtype


def _loss_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _logvar_ranges(config: StabilityConfig) -> dict[torch.dtype, tuple[float, float]]:
    """By dtype where the bounds of the log-variance begin: pi / 2 inside the limits, which they approach."""
    ranges = {}
    for dtype in FLOAT_DTYPES:
        bounds = config.precision[dtype]
        lower, upper = bounds.log_variance_min, min(bounds.log_variance_max, WIDEST_LOG_VARIANCE)
        ranges[dtype] = (lower + 0.5 * math.pi, upper - 0.5 * math.pi)
    return ranges
