"""latent_drift: the corrected model, the stability toolbox and versioned stability configs.

Public names are resolved on first use (PEP 562), so importing the package, or `latent_drift.config`,
loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from latent_drift._version import __version__

# Public name -> module that defines it. Model parts list their names here.
_EXPORTS: dict[str, str] = {}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'latent_drift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
