"""The deterministic latent ODE model: a causal encoder, a learned vector field, an autoregressive observation.

Every z_t is the encoding of the tokens up to t. Between two tokens the latent follows dz/dt = f(z, t): from z_t the
field forecasts z_{t+1}, and token t+1 is observed through that forecast and the tokens before it. So

    log p(x) = sum_t log p(x_t | z_0, forecasts up to t, tokens before t)

is a likelihood that sees no future, and sampling walks the same recursion from the learned prior of z_0. Under
`legacy_compat` the published objective stands: encoder over the whole sequence, no gradient through the forecasts'
starting points, statistics proportional to the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.config import StabilityConfig, load
from latent_drift.errors import UsageError
from latent_drift.models.distributed import all_reduce
from latent_drift.models.encoder import DeterministicEncoder
from latent_drift.models.goodness_of_fit import latent_normality_test
from latent_drift.models.observation import DiscreteObservation
from latent_drift.models.prior import PriorInitDistribution, PriorODE
from latent_drift.numerics.bounds import attach_gradient

REFERENCE_STEPS: Final = 66
"""Steps of the published sequences of 67 tokens: there, and only there, the corrected and the published weight of an
error of the vector field are the same."""

LARGEST_VARIANCE_RATIO: Final = 10.0
"""Where the likelihood's gradient of the prior's log scale, 1 - variance / scale^2, is cut off. A batch of one normal
sample exceeds it with probability 0.002."""


class Predictor(nn.Module):
    """A time-free forecast of the next latent: (..., latent_size) to the same, one hidden layer."""

    def __init__(self, latent_size: int, hidden_size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, latent_size))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z)
        return out


def _mean(x: Tensor) -> Tensor:
    """The mean in float32 at least; 0, with a graph, of nothing."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.sum() / max(1, x.numel()) if x.numel() == 0 else wide.mean()


class DeterministicLatentODE(nn.Module):
    """Characters to latent trajectories and back.

    Args:
        vocab_size, latent_size, hidden_size, embed_size: sizes; hidden_size at least 4, the heads of attention.
        num_slices: directions of the normality test of the latents.
        config: the stability config that bounds the prior's scale; None loads the default.
        legacy_compat: the published objective and sampling (see the module, and CHANGELOG).

    Attributes:
        encoder, p_init_distr, p_ode, p_observe, latent_test, predictor: the parts, named as in the state dict.

    Raises:
        UsageError: a size that some part cannot have; it names the part.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_size: int,
        hidden_size: int,
        embed_size: int,
        num_slices: int = 64,
        *,
        config: StabilityConfig | None = None,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("latent_size", latent_size), ("embed_size", embed_size)):
            if value < 1:
                raise UsageError(f"DeterministicLatentODE: {name} must be at least 1; got {value!r}")
        self.config = config or load()
        self.legacy_compat = legacy_compat
        self.vocab_size = vocab_size
        self.latent_size = latent_size
        self.encoder = DeterministicEncoder(vocab_size, embed_size, hidden_size, latent_size, legacy_compat=legacy_compat)
        self.p_init_distr = PriorInitDistribution(latent_size, config=self.config, legacy_compat=legacy_compat)
        self.p_ode = PriorODE(latent_size, hidden_size, legacy_compat=legacy_compat)
        self.p_observe = DiscreteObservation(latent_size, vocab_size, embed_size, hidden_size, legacy_compat=legacy_compat)
        self.latent_test = latent_normality_test(num_slices, legacy_compat=legacy_compat)
        self.predictor = Predictor(latent_size, hidden_size)

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to the latent trajectory (B, L, latent_size).

        Raises:
            UsageError: tokens are not (B, L) with L at least 1.
            UnknownTokenError (an IndexError): a token outside the vocabulary.
        """
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise UsageError(f"DeterministicLatentODE: tokens must be (B, L) with L at least 1; got {tuple(tokens.shape)}")
        z: Tensor = self.encoder(tokens)
        return z

    def decode_logits(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits (B, L, vocab_size) of `tokens` (B, L) along the latents `z` (B, L, latent_size)."""
        return self.p_observe.get_logits(z, tokens)

    def ode_matching_loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """How far one step of the vector field lands from the next latent, and where it lands.

        Args:
            z: (B, L, D), at L equally spaced times from 0 to 1.

        Returns:
            The mean absolute difference of f(z_t, t) dt and z_{t+1} - z_t, dt = 1 / (L - 1), times (L - 1) / 66: an
            error of the field weighs the same at every length, and what it always did at 67 tokens. And z_t + f dt,
            (B, L - 1, D). One latent alone gives 0 (with a graph) and (B, 0, D).

            Under `legacy_compat` without that factor (an error of f then weighs 1 / (L - 1)), and z_t detached.
        """
        steps = z.shape[1] - 1
        if steps < 1:
            return _mean(z[:, :0]), z[:, 1:]
        start, target = z[:, :-1], z[:, 1:]
        times = torch.arange(steps, dtype=torch.float32, device=z.device).div(steps).to(z.dtype).view(1, steps, 1)
        increment = self.p_ode(start, times) / steps
        loss = _mean((increment - (target - start)).abs())
        if self.legacy_compat:
            return loss, start.detach() + increment
        return loss * (steps / REFERENCE_STEPS), start + increment

    def loss_components(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (nats a token), normality of the latents, and ODE matching of tokens (B, L), each 0-d.

        An empty batch gives three zeros with a graph.
        """
        recon, latent_reg, ode_reg, _ = self._components(tokens)
        return recon, latent_reg, ode_reg

    def _components(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = self.encode(tokens)
        ode_reg, z_pred = self.ode_matching_loss(z)
        path = torch.cat([z[:, :1], z_pred], dim=1)
        logits = self.decode_logits(path, tokens).flatten(0, 1)
        recon = _mean(F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), tokens.flatten().long(), reduction="none"))
        latent_reg: Tensor = self.latent_test(z.flatten(0, 1))
        if self.legacy_compat:
            latent_reg = 0.5 * (latent_reg + self.latent_test(path.flatten(0, 1)))
        return recon, latent_reg, ode_reg, z

    def forward(self, tokens: Tensor, loss_weights: Sequence[float] = (1.0, 0.1, 1.0)) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of tokens (B, L), and its parts.

        Args:
            loss_weights: of reconstruction, normality and ODE matching.

        Returns:
            A 0-d loss in float32 at least, and the unweighted parts, detached: `recon`, `latent_ep`, `ode_reg`.
            The prior of z_0 and the predictor are fitted beside the model: they receive gradients of their own
            through the loss, whose value and whose other gradients are those of the three parts.

        Raises:
            UsageError: fewer than three weights, or tokens that `encode` refuses.
        """
        if len(loss_weights) < 3:
            raise UsageError(f"DeterministicLatentODE: loss_weights are (reconstruction, normality, ODE matching); got {tuple(loss_weights)!r}")
        recon, latent_reg, ode_reg, z = self._components(tokens)
        loss = loss_weights[0] * recon + loss_weights[1] * latent_reg + loss_weights[2] * ode_reg
        if not self.legacy_compat:
            loss = loss + attach_gradient(torch.zeros_like(loss), self._fit_beside(z.detach()).to(loss.dtype))
        return loss, {"recon": recon.detach(), "latent_ep": latent_reg.detach(), "ode_reg": ode_reg.detach()}

    def _fit_beside(self, z: Tensor) -> Tensor:
        """What trains the prior of z_0 and the predictor, on latents that are taken as given.

        The prior's location follows the mean of z_0 by an absolute error rounded off at 1, its log scale the gradient of
        the likelihood, 1 - variance / scale^2, bounded below: where all z_0 agree, the likelihood's own gradient grows as
        1 / scale^2 and would take up all of a clipped gradient. The predictor forecasts the smoothed next latent.
        """
        prior = self.p_init_distr
        first, m, log_s = z[:, 0].float(), prior.m.float(), prior.log_s.float()
        low, high = prior.log_scale_bounds
        with torch.no_grad():
            # sums over all ranks, so that several processes fit the prior that one would
            sums = all_reduce(torch.stack([first.sum(0), (first - m).square().sum(0), first.new_full(first.shape[1:], first.shape[0])]), op="SUM")
            total, squares, count = sums.unsqueeze(1)
            here = count > 0
            centre = torch.where(here, total / count.clamp_min(1.0), m)
            log_variance = (squares / count.clamp_min(1.0)).log()
            slope = 1.0 - (log_variance - 2.0 * log_s.clamp(low, high)).clamp_max(math.log(LARGEST_VARIANCE_RATIO)).exp()
            further_out = ((log_s <= low) & (slope > 0)) | ((log_s >= high) & (slope < 0))
            slope = slope.masked_fill(further_out | ~here, 0.0)
        location = F.smooth_l1_loss(m, centre, reduction="none")
        scale = log_s * slope
        forecast = (self.predictor(z[:, :-1]) - self.encoder.local_smooth(z)[:, 1:]).abs()
        return _mean(location) + _mean(scale) + _mean(forecast)
