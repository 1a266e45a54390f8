"""The stability toolbox: every public name, loaded when it is first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Module -> the public names it defines.
_MODULES: dict[str, tuple[str, ...]] = {
    "constants": ("StabilityConstants", "get_eps"),
    "elementary": ("stable_divide", "stable_exp", "stable_log", "stable_logit", "stable_sigmoid", "stable_softplus", "stable_sqrt"),
    "reductions": ("log_sum_exp", "stable_log_softmax", "stable_norm", "stable_normalize", "stable_softmax"),
    "normalization": ("RMSNorm", "StableLayerNorm"),
    "attention": ("StableAttention",),
    "transformer": ("StableTransformerBlock",),
    "gradients": (
        "GradientManager",
        "adaptive_clip",
        "adaptive_gradient_clipping",
        "agc",
        "check_gradients",
        "clip_gradients",
        "normalize_gradients",
    ),
    "losses": ("StableLosses", "gaussian_nll", "stable_binary_cross_entropy", "stable_cross_entropy", "stable_kl_divergence", "stable_vae_loss"),
    "amp": ("DynamicLossScaler", "MixedPrecisionHelper", "stable_backward"),
    "health": ("check_tensor", "check_tensor_health"),
    "activations": ("ActivationMonitor",),
    "monitor": ("StabilityMonitor",),
    "histograms": ("gradient_histograms",),
    "rollback": ("RollbackGuard",),
    "schedule": ("AdaptiveLR",),
    "checkpoint": ("load_checkpoint", "save_checkpoint_with_validation"),
    "initialization.schemes": ("StableInitializer", "gain_of", "initialize", "orthogonal_init", "spectral_norm_init"),
    "initialization.lsuv": ("lsuv_init",),
    "initialization.residual": ("ResidualBranch", "fixup_init", "rezero_init"),
    "initialization.fans": ("Fans", "fans_of"),
    "initialization.describe": ("describe",),
    "spectra": ("condition_number", "jacobian_norm", "lipschitz_bounds", "spectral_penalty", "spectrum"),
    "stiffness": ("solver_step_bound", "stiffness_report"),
    "physics": ("physics_informed_report",),
    "quantization": ("quantization_report",),
    "batchnorm": ("check_batchnorm",),
    "precision_comparison": ("precision_drift",),
    "flow": ("GradientFlow", "analyze_gradient_flow"),
    "plots": ("plot_activation_statistics", "plot_gradient_flow", "plot_spectra"),
    "training": ("stable_training_step", "train_with_stability"),
    "recurrent": ("train_rnn_stable",),
    "diagnosis.diagnose": ("diagnose",),
    "diagnosis.fault": ("Diagnosis", "Fault"),
    "tester": ("StabilityReport", "StabilityTester", "Subject"),
    "numerical_assertions": ("assert_finite", "assert_in_range", "assert_normalized", "assertions", "assertions_enabled", "set_assertions"),
}
_EXPORTS: dict[str, str] = {name: f"latent_drift.stability.{module}" for module, names in _MODULES.items() for name in names} | {
    # Defined below the toolbox, where run time shares them.
    "GradientHistory": "latent_drift.numerics.gradients",
    "RunningMoments": "latent_drift.numerics.moments",
    "kahan_sum": "latent_drift.numerics.summation",
    "pairwise_sum": "latent_drift.numerics.summation",
    "welford": "latent_drift.numerics.moments",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'latent_drift.stability' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
