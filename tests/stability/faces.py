"""Every public function of the toolbox that takes tensors, as a function of one of them: what the sweeps of `test_every_face.py` run over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import latent_drift.stability as stability


class Face(NamedTuple):
    """One tensor argument of one public name.

    Attributes:
        name: the public name, by which bad tensors are refused.
        call: a function of the argument, a tensor of shape (..., 4); the other arguments are fixed.
        keeps_shape: the result has the argument's shape.
        scalar: a tensor without dimensions is a valid argument.
        width: the last dimension that the argument must have, or None.
        edges: values and gradients are finite wherever the argument is, unless the exact result does not fit the dtype
            (False: products of weights and inputs at the dtype's end leave it).
        twice: it differentiates twice.
        labels: integers are valid.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    keeps_shape: bool = False
    scalar: bool = True
    width: int | None = None
    edges: bool = True
    twice: bool = True
    labels: bool = False


def _with(x: object, value: float) -> Tensor:
    """A healthy partner for `x`, of its shape and, where that is a usable one, its dtype."""
    if not isinstance(x, Tensor):
        return torch.full((2,), value)
    usable = x.dtype.is_floating_point and x.dtype.itemsize > 1
    return torch.full(x.shape, value, dtype=x.dtype if usable else torch.float32)


def _classes(x: object) -> Tensor:
    return torch.zeros(x.shape[:-1] if isinstance(x, Tensor) else 2, dtype=torch.long)


def _module(make: Callable[[], nn.Module], batched: bool = False) -> Callable[[Tensor], Tensor]:
    """The module in the dtype of its input; sequences get the batch dimension that they need."""
    torch.manual_seed(0)
    built = {dtype: make().to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    state = built[torch.float64].state_dict()
    for module in built.values():
        module.load_state_dict(state)

    def call(x: Tensor) -> Tensor:
        module = built.get(x.dtype, built[torch.float32]) if isinstance(x, Tensor) else built[torch.float32]
        result: Tensor = module(x[None] if batched and isinstance(x, Tensor) and x.dim() == 2 else x)
        return result

    return call


ELEMENTWISE = ("stable_exp", "stable_log", "stable_sqrt", "stable_sigmoid", "stable_softplus", "stable_logit")
ROWS = ("stable_softmax", "stable_log_softmax", "stable_normalize")
REDUCTIONS = ("log_sum_exp", "stable_norm", "kahan_sum", "pairwise_sum")


def _losses() -> dict[str, Face]:
    s = stability
    vae, kl, nll = s.stable_vae_loss, s.stable_kl_divergence, s.gaussian_nll

    def gaussian(x: Tensor, *, argument: str) -> Tensor:
        values = {"recon_x": 0.5, "x": 0.25, "mu": 0.5, "logvar": 0.0}
        return vae(**{name: x if name == argument else _with(x, value) for name, value in values.items()}, likelihood="gaussian")

    faces: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "stable_kl_divergence, mean": ("stable_kl_divergence", lambda x: kl(x, _with(x, 0.5))),
        "stable_kl_divergence, logvar": ("stable_kl_divergence", lambda x: kl(_with(x, 0.5), x)),
        "stable_kl_divergence, prior_mean": ("stable_kl_divergence", lambda x: kl(_with(x, 0.5), _with(x, 0.0), x)),
        "stable_kl_divergence, prior_logvar": ("stable_kl_divergence", lambda x: kl(_with(x, 0.5), _with(x, 0.0), 0.0, x)),
        "gaussian_nll, mean": ("gaussian_nll", lambda x: nll(x, _with(x, 0.0), _with(x, 0.5))),
        "gaussian_nll, target": ("gaussian_nll", lambda x: nll(_with(x, 0.0), x, _with(x, 0.5))),
        "gaussian_nll, logvar": ("gaussian_nll", lambda x: nll(_with(x, 0.0), _with(x, 0.5), x)),
        "stable_binary_cross_entropy, pred": ("stable_binary_cross_entropy", lambda x: s.stable_binary_cross_entropy(x, _with(x, 0.5))),
        "stable_binary_cross_entropy, target": ("stable_binary_cross_entropy", lambda x: s.stable_binary_cross_entropy(_with(x, 0.5), x)),
        "stable_vae_loss, recon_x": ("stable_vae_loss", lambda x: gaussian(x, argument="recon_x")),
        "stable_vae_loss, x": ("stable_vae_loss", lambda x: gaussian(x, argument="x")),
        "stable_vae_loss, mu": ("stable_vae_loss", lambda x: gaussian(x, argument="mu")),
        "stable_vae_loss, logvar": ("stable_vae_loss", lambda x: gaussian(x, argument="logvar")),
        "stable_vae_loss, logits": (
            "stable_vae_loss",
            lambda x: vae(x, _with(x, 0.5), _with(x, 0.0), _with(x, 0.0), likelihood="bernoulli_logits"),
        ),
        "stable_vae_loss, probabilities": (
            "stable_vae_loss",
            lambda x: vae(x, _with(x, 0.5), _with(x, 0.0), _with(x, 0.0), likelihood="bernoulli"),
        ),
    }
    return {label: Face(name, call, labels=label.endswith("entropy, target")) for label, (name, call) in faces.items()} | {
        "stable_cross_entropy, classes": Face("stable_cross_entropy", lambda x: s.stable_cross_entropy(x, _classes(x)), scalar=False),
        "stable_cross_entropy, probabilities": Face("stable_cross_entropy", lambda x: s.stable_cross_entropy(x, _with(x, 0.25)), scalar=False),
    }


FACES: dict[str, Face] = {
    **{name: Face(name, getattr(stability, name), keeps_shape=True) for name in (*ELEMENTWISE, *ROWS)},
    **{name: Face(name, getattr(stability, name)) for name in REDUCTIONS},
    "stable_divide, denominator": Face("stable_divide", lambda x: stability.stable_divide(1.0, x), keeps_shape=True),
    "stable_divide, numerator": Face("stable_divide", lambda x: stability.stable_divide(x, _with(x, 2.0)), keeps_shape=True),
    "welford, mean": Face("welford", lambda x: stability.welford(x).mean),
    "welford, variance": Face("welford", lambda x: stability.welford(x, correction=0).variance),
    **_losses(),
    "StableLayerNorm": Face("StableLayerNorm", _module(lambda: stability.StableLayerNorm(4)), keeps_shape=True, scalar=False, width=4),
    "RMSNorm": Face("RMSNorm", _module(lambda: stability.RMSNorm(4)), keeps_shape=True, scalar=False, width=4),
    "StableAttention": Face(
        "StableAttention", _module(lambda: stability.StableAttention(4, 2), batched=True), scalar=False, width=4, edges=False, twice=False
    ),
    "StableTransformerBlock": Face(
        "StableTransformerBlock",
        _module(lambda: stability.StableTransformerBlock(4, 2), batched=True),
        scalar=False,
        width=4,
        edges=False,
        twice=False,
    ),
}
"""label -> face; a label begins with the public name."""

GRADIENTS = (
    "adaptive_clip",
    "adaptive_gradient_clipping",
    "agc",
    "analyze_gradient_flow",
    "check_gradients",
    "clip_gradients",
    "gradient_histograms",
    "normalize_gradients",
)
"""What reads or changes the gradients of parameters."""

ASSERTIONS = ("assert_finite", "assert_in_range", "assert_normalized")

ELSEWHERE = {
    "constants and settings": ("StabilityConstants", "assertions", "assertions_enabled", "get_eps", "set_assertions"),
    "one weight or a model's weights": (
        "Fans",
        "ResidualBranch",
        "StableInitializer",
        "describe",
        "fans_of",
        "fixup_init",
        "gain_of",
        "initialize",
        "lsuv_init",
        "orthogonal_init",
        "rezero_init",
        "spectral_norm_init",
    ),
    "faces under other names": ("GradientManager", "MixedPrecisionHelper", "StableLosses"),
    "any tensor at all": ("check_tensor", "check_tensor_health"),
    "streams and histories": ("ActivationMonitor", "AdaptiveLR", "GradientHistory", "RollbackGuard", "RunningMoments", "StabilityMonitor"),
    "analysis of models": (
        "Diagnosis",
        "Fault",
        "GradientFlow",
        "StabilityReport",
        "StabilityTester",
        "Subject",
        "check_batchnorm",
        "condition_number",
        "diagnose",
        "jacobian_norm",
        "lipschitz_bounds",
        "physics_informed_report",
        "plot_activation_statistics",
        "plot_gradient_flow",
        "plot_spectra",
        "precision_drift",
        "quantization_report",
        "solver_step_bound",
        "spectral_penalty",
        "spectrum",
        "stiffness_report",
    ),
    "training": (
        "DynamicLossScaler",
        "load_checkpoint",
        "save_checkpoint_with_validation",
        "stable_backward",
        "stable_training_step",
        "train_rnn_stable",
        "train_with_stability",
    ),
}
"""Public names that are no function of one tensor; their own tests look at them."""
