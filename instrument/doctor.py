"""What `python -m instrument doctor` finds out about this machine and this folder."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from instrument.session import stable
from latent_drift._version import __version__

_OUR_HOME = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Examination:
    """Facts as (label, value), and problems, each with what to do."""

    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


def _tested_torch() -> Requirement | None:
    try:
        declared = requires("latent-drift") or []
    except PackageNotFoundError:
        return None
    return next((r for r in map(Requirement, declared) if r.name == "torch" and r.marker is None), None)


def shadowing_files(folder: str) -> list[str]:
    """Files and packages in `folder` that carry the name of one of our packages: `python -m instrument` started there runs those."""
    if Path(folder).resolve() == _OUR_HOME:
        return []
    found = []
    for name in ("instrument", "latent_drift", "patches"):
        spec = importlib.machinery.PathFinder.find_spec(name, [folder])
        if spec is not None and spec.origin is not None:
            found.append(spec.origin)
    return found


def examine() -> Examination:
    """Everything that decides whether and how a run would be guarded here.

    Raises:
        ConfigError: the active pin cannot be used.
    """
    facts = [("latent-drift", __version__), ("python", sys.version.split()[0]), ("torch", torch.__version__)]
    problems = []
    tested = _tested_torch()
    if tested is not None:
        facts.append(("tested torch", str(tested.specifier)))
        if not tested.specifier.contains(torch.__version__.partition("+")[0], prereleases=True):
            problems.append(
                f"torch {torch.__version__} is outside the tested range {tested.specifier}: install a tested one, or check results with care"
            )
    for package in ("torch-optimizer", "pydantic"):
        try:
            facts.append((package, version(package)))
        except PackageNotFoundError:
            problems.append(f"{package} is not installed: pip install latent-drift")
    with stable() as run:
        facts += [("config", run.config.identity), ("operations guarded", str(len(run.intercepted)))]
        facts += [("", name) for name in run.intercepted]
    facts.append(("LATENT_DRIFT_CONFIG", os.environ.get("LATENT_DRIFT_CONFIG", "(not set)")))
    for origin in shadowing_files(os.getcwd()):
        problems.append(
            f"{origin} has the name of one of our packages: `python -m instrument` started in this folder runs it. Use `stable-run` instead"
        )
    return Examination(tuple(facts), tuple(problems))
