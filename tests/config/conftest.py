"""Every test here runs in an empty project of its own, with no pin from outside."""

from __future__ import annotations

from tests.projects import project

__all__ = ["project"]  # a fixture of every test here
