"""latent_drift: the corrected model, the stability toolbox and versioned stability configs.

Public names are resolved on first use (PEP 562), so importing the package, or `latent_drift.config`,
loads no torch. `from latent_drift import *` offers every name of the original script.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from latent_drift._version import __version__

# Public names by the module that defines them.
_PUBLIC: Final[dict[str, tuple[str, ...]]] = {
    "latent_drift.errors": ("ConfigError", "GiveUpError", "LatentDriftError", "MissingExtraError", "NumericalError", "UsageError"),
    "latent_drift.models.alphabet": ("char2idx", "chars", "decode", "encode", "idx2char", "vocab_size"),
    "latent_drift.models.sequences": ("SyntheticTargetDataset",),
    "latent_drift.models.distributed": ("all_reduce", "is_dist_avail_and_initialized"),
    "latent_drift.models.goodness_of_fit": ("EppsPulleyCF", "FastEppsPulley", "SlicingUnivariateTest", "UnivariateTest"),
    "latent_drift.solvers.ode": ("ODE", "solve_ode"),
    "latent_drift.models.prior": ("PriorInitDistribution", "PriorODE"),
    "latent_drift.models.attention": ("AddPositionalEncoding", "QKVAttention", "TransformerBlock"),
    "latent_drift.models.encoder": ("DeterministicEncoder", "PosteriorEncoder"),
    "latent_drift.models.observation": ("DiscreteObservation",),
    "latent_drift.models.latent_ode": ("DeterministicLatentODE", "Predictor"),
    "latent_drift.models.sample_ode": ("sample_sequences_ode",),
    "latent_drift.models.train_ode": ("train_ode",),
    "latent_drift.models.log_alphabet": (
        "LOG_CATEGORIES",
        "NUM_LOG_CLASSES",
        "decode_log",
        "encode_log",
        "log_char2idx",
        "log_chars",
        "log_idx2char",
        "log_vocab_size",
    ),
    "latent_drift.models.log_data": ("LogDataset",),
    "latent_drift.models.time_features": ("TimeAwareTransform",),
    "latent_drift.models.raccoon_dynamics": ("RaccoonDynamics",),
    "latent_drift.solvers.sde": ("solve_sde",),
    "latent_drift.models.coupling_flow": ("CouplingLayer", "RaccoonFlow"),
    "latent_drift.models.replay_memory": ("RaccoonMemory",),
    "latent_drift.models.raccoon": ("RaccoonLogClassifier",),
    "latent_drift.models.train_raccoon": ("continuous_learning_phase", "train_raccoon_classifier"),
}

_EXPORTS: Final[dict[str, str]] = {name: module for module, names in _PUBLIC.items() for name in names}

LEGACY_MODULE_NAMES: Final = ("latent_drift_trajectory", "latent_drift_trajectory_stable")
"""The names under which `install_alias` registers this package: the original script and its audited copy."""

__all__ = ["__version__", "install_alias", *_EXPORTS]


class _StableAlias(ModuleType):
    """This package and its stability toolbox under one name, as the audited copy of the script had them."""

    def __getattr__(self, name: str) -> Any:
        this, toolbox = sys.modules[__name__], "latent_drift.stability"
        if name == "__all__":
            return [*__all__, *import_module(toolbox).__all__]
        if name in _EXPORTS or name in vars(this):
            return getattr(this, name)
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(toolbox), name)


def install_alias() -> None:
    """Let `import latent_drift_trajectory` (and `latent_drift_trajectory_stable`) find this package.

    Registers the package in `sys.modules` under the first name, so that a script written for the original, and objects
    pickled by it, resolve here; and under the second the package together with the names of `latent_drift.stability`,
    as the audited copy of the script had them. Calling it again changes nothing.

    Raises:
        ImportError: another module already has one of the names; it is left in place, and nothing is registered.
    """
    ours = {LEGACY_MODULE_NAMES[0]: sys.modules[__name__], LEGACY_MODULE_NAMES[1]: _STABLE_ALIAS}
    taken = [name for name, module in ours.items() if sys.modules.get(name, module) is not module]
    if taken:
        raise ImportError(f"install_alias: {', '.join(taken)} already imported from elsewhere; call install_alias() before importing the original")
    sys.modules.update(ours)


_STABLE_ALIAS: Final = _StableAlias(LEGACY_MODULE_NAMES[1], _StableAlias.__doc__)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'latent_drift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
