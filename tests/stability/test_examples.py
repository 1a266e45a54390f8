"""The examples in the docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import latent_drift.numerics
import latent_drift.stability

MODULES = [
    module.name
    for package in (latent_drift.stability, latent_drift.numerics)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    torch.manual_seed(0)
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


def test_every_public_callable_has_an_example_or_stands_for_one_that_has() -> None:
    without = []
    for name in latent_drift.stability.__all__:
        thing = getattr(latent_drift.stability, name)
        if ">>>" not in (thing.__doc__ or "") and not (isinstance(thing, type) and any(">>>" in (v.__doc__ or "") for v in vars(thing).values())):
            without.append(name)
    below = {"GradientHistory", "RunningMoments", "welford", "kahan_sum", "pairwise_sum"}  # defined in numerics
    faces = {"GradientManager", "StableLosses"}  # each method is a function that has one
    results = {"Diagnosis", "Fault", "GradientFlow", "StabilityReport", "Subject", "assertions"}  # shown by the function that gives them
    assert set(without) <= below | faces | results
