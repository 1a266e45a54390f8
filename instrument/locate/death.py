"""An exception that a script dies of because a number went bad: `math.exp` that overflows, a factorization of a singular matrix."""

from __future__ import annotations

import linecache
import re

from instrument.callsite import is_users
from instrument.events import Site

_SAYS_SO = re.compile(r"\bnan\b|\binfs?\b|infinit|illegal value|singular|converge|overflow|positive.definite|domain error", re.IGNORECASE)
_OF_DISTRIBUTION = re.compile(r"to satisfy the constraint|to be within the support")


def is_numerical(error: BaseException) -> bool:
    """Whether an exception is about numbers: Python's own, a factorization's, or one that says so."""
    if isinstance(error, ArithmeticError) or type(error).__name__ in ("LinAlgError", "_LinAlgError"):
        return True
    return isinstance(error, RuntimeError | ValueError) and (_SAYS_SO.search(str(error)) is not None or _is_of_distribution(error))


def code_of(error: BaseException) -> str:
    """The finding of a numerical exception that nothing else explains."""
    return "NS709" if _is_of_distribution(error) else "NS805"


def _is_of_distribution(error: BaseException) -> bool:
    """Whether torch.distributions refuses a parameter (a scale that a network made negative) or a value."""
    return isinstance(error, ValueError) and _OF_DISTRIBUTION.search(str(error)) is not None


def line_of_death(error: BaseException) -> Site | None:
    """The innermost line of the script that the exception passed; None where it passed none."""
    found: Site | None = None
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename):
            source = linecache.getline(code.co_filename, traceback.tb_lineno).strip() or None
            found = Site(code.co_filename, traceback.tb_lineno, code.co_name, source)
        traceback = traceback.tb_next
    return found


def first_line(error: BaseException) -> str:
    """What an exception says, as one line."""
    return next(iter(str(error).splitlines()), "")
