"""Every exception this distribution raises on its own account.

    LatentDriftError
    +-- ConfigError (also ValueError)     a stability config, pin or lock file that cannot be used
    +-- NumericalError (also ArithmeticError)  a number went bad and the config says to raise
    |   +-- GiveUpError                   too many bad steps in a row, or nothing left to roll back to
    +-- UsageError (also ValueError)      an argument that no call of ours accepts
    +-- MissingExtraError (also ImportError)   an optional dependency is not installed

Imports nothing of ours and nothing but the standard library, so that every layer may use it.
"""

from __future__ import annotations


class LatentDriftError(Exception):
    """Base of every exception raised by latent-drift itself."""


class ConfigError(LatentDriftError, ValueError):
    """A stability config, pin, release or lock file that cannot be used."""


class NumericalError(LatentDriftError, ArithmeticError):
    """A number went bad and the active config says to raise rather than to repair."""


class GiveUpError(NumericalError):
    """Too many bad steps in a row: going on would only spin."""


class UsageError(LatentDriftError, ValueError):
    """An argument outside what the called function accepts."""


class MissingExtraError(LatentDriftError, ImportError):
    """An optional dependency is missing; the message holds the command that installs it."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package!r}, which is not installed. Install it with: pip install 'latent-drift[{extra}]'")
        self.package = package
        self.extra = extra
