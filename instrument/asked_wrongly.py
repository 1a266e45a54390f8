"""How the command line says that it was asked for something that it cannot do."""

from __future__ import annotations

import typer

ASKED_WRONGLY = 2
"""The exit status then."""


def refuse(message: str) -> typer.Exit:
    """Print the message to standard error; returns what to raise."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(ASKED_WRONGLY)
