"""`latent-drift classify`: lines of a log file, or of a stream, with the category of each."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from latent_drift.cli import trained as on_checkpoint
from latent_drift.errors import UsageError

if TYPE_CHECKING:
    from latent_drift.training.classification import Classified

_SHOWN_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if code != 9}
"""Control characters as text: a log line must not move the reader's cursor."""


def classify(
    checkpoint: on_checkpoint.Given,
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="A log file; - or nothing for standard input, line by line as it comes.")] = "-",
    only: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="Show lines of this class only: ERROR, WARNING, INFO, DEBUG. May be repeated.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Take lines as they are; otherwise time stamps and syslog's sender before the message are passed over.")
    ] = False,
    counts: Annotated[bool, typer.Option("--counts", help="Show how many lines each class has, instead of the lines.")] = False,
    device: on_checkpoint.Device = "cpu",
    config: on_checkpoint.Config = None,
    change_config: on_checkpoint.ChangeConfig = False,
    as_json: on_checkpoint.Json = False,
) -> None:
    """Classify the lines of a log.

    Writes class, probability and the line, separated by tabs, for every line and in order, each as soon as it has come.

    A line without a letter or digit has the class "-". Letters count in either case; characters outside the model's alphabet (A-Z, 0-9 and
    _!>?) count as blank; the first 50 characters of a message decide.
    """
    from latent_drift.models.log_alphabet import LOG_CATEGORIES
    from latent_drift.training.classification import LineClassifier
    from latent_drift.training.lines import arriving_lines

    wanted = _wanted(only, LOG_CATEGORIES)
    found: Counter[str] = Counter()
    number = 0
    with _opened(source) as file:
        model = on_checkpoint.load(checkpoint, "raccoon", device, config, change_config).model
        classifier = LineClassifier(model, next(model.parameters()).device, whole=whole)  # type: ignore[arg-type]
        groups = arriving_lines(file.read1)  # type: ignore[attr-defined]
        while True:
            try:
                lines = next(groups, None)
            except OSError as error:
                raise UsageError(f"{source}: cannot be read on: {error.strerror}; {number} lines were classified") from error
            if lines is None:
                break
            shown = []
            for result in classifier(lines):
                number += 1
                category = result.category or "-"
                found[category] += 1
                if not counts and (wanted is None or category in wanted):
                    shown.append(_json(number, result) if as_json else _text(result))
            if shown:
                _write(shown)
    if counts:
        names = [name for name in (*LOG_CATEGORIES, "-") if wanted is None or name in wanted]
        _write([json.dumps({name: found[name] for name in names})] if as_json else [f"{name}\t{found[name]}" for name in names])


def _wanted(only: list[str] | None, known: list[str]) -> set[str] | None:
    if not only:
        return None
    wanted = {name.upper() for name in only}
    unknown = sorted(wanted - set(known) - {"-"})
    if unknown:
        raise UsageError(f"--only {', '.join(unknown)}: the classes are {', '.join(known)}, and - for lines without a message")
    return wanted


def _opened(source: str) -> AbstractContextManager[BinaryIO]:
    """The bytes of a file, closed afterwards, or of standard input, left open."""
    if source == "-":
        if sys.stdin is None:
            raise UsageError("-: standard input is closed; give a log file")
        return nullcontext(sys.stdin.buffer)
    path = Path(source)
    if path.is_dir():
        raise UsageError(f"{source}: is a folder; give a log file, or - for standard input")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error.strerror}; give a log file, or - for standard input") from error


def _text(result: Classified) -> str:
    return f"{result.category or '-'}\t{result.probability:.3f}\t{result.text.translate(_SHOWN_CONTROL)}"


def _json(number: int, result: Classified) -> str:
    return json.dumps({"line": number, "class": result.category, "probability": round(result.probability, 6), "text": result.text})


def _write(lines: list[str]) -> None:
    """On standard output at once, in UTF-8 whatever the locale; nowhere if it is closed."""
    if sys.stdout is None:
        return
    sys.stdout.flush()
    data = "".join(line + os.linesep for line in lines).encode("utf-8", errors="replace")
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # a text stream that stands in for standard output
        sys.stdout.write(data.decode("utf-8"))
    else:
        binary.write(data)
        binary.flush()
    sys.stdout.flush()
