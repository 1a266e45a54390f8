"""What guards of operations that raise for a numerical reason share.

The healthy path is the original call and nothing else. Where it raises, and the config allows a repair (`repair_raising`: in `train`, not in
`guard`), a subclass may name the smallest change of the arguments with which the call goes through; it is tried, and noted. Everything else,
a shape error or a probability of 1.3 too, raises the very same exception as before, and so does what the script itself is prepared for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from instrument.guards.base import AbstractGuard, Function, Spelling, is_compiling, mimic
from instrument.guards.expected_error import is_expected
from instrument.guards.hand_over import call_on, is_foreign, is_handled
from instrument.runtime import RUNTIME, is_plain, without_function_modes
from instrument.tensors import is_bad

Attempt = tuple[tuple[Any, ...], dict[str, Any], str]
"""Arguments to call again with, and what was changed."""


class AbstractRaisingGuard(AbstractGuard):
    """A guard that acts only once the original has raised."""

    errors: ClassVar[tuple[type[Exception], ...]] = (RuntimeError,)

    @abstractmethod
    def culprit(self, op: str, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The argument that the exception is about, None if this is no numerical failure of ours to judge."""

    @abstractmethod
    def attempts(self, op: str, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Attempt]:
        """Repairs to try, the smallest first; none where there is no small one."""

    def stand_in(self, original: Function, spelling: Spelling) -> Function:
        """The original, and a second chance."""
        op = spelling.op

        @mimic(original, spelling)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_compiling() or not RUNTIME.active:
                return original(*args, **kwargs)
            if is_handled(args) and is_foreign(args, kwargs):
                return call_on(guarded, original, args, kwargs)
            try:
                return original(*args, **kwargs)
            except self.errors as error:
                culprit = self.culprit(op, error, args, kwargs)
                if culprit is None or not is_plain(culprit):
                    raise
                result = self._second_chance(original, op, error, culprit, args, kwargs)
                if result is None:
                    raise
                return result[0]

        return guarded

    def _second_chance(
        self, original: Function, op: str, error: Exception, culprit: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | None:
        run = RUNTIME.run
        first_line = str(error).partition("\n")[0].rstrip(": ")
        with without_function_modes():
            if is_expected(error):
                run.search.born(self.code, op, message=f"{op} raised: {first_line}", x=culprit)
                return None
            if is_bad(culprit):
                run.search.blame_inputs([culprit])
            if run.config.act and run.config.repair_raising and not run.allows(op):
                for new_args, new_kwargs, change in self.attempts(op, culprit, args, kwargs):
                    try:
                        result = original(*new_args, **new_kwargs)
                    except self.errors:
                        continue
                    run.note(self.code, "repaired", op, x=culprit, message=f"{op} would have raised ({first_line}); {change}", fired=True)
                    return (result,)
            run.note(self.code, "observed", op, x=culprit, message=f"{op} raised: {first_line}")
        return None


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str) -> Any:
    """An argument by position or by any of its names."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def replaced(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, new: Any, *names: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with that one replaced."""
    if len(args) > position:
        return (*args[:position], new, *args[position + 1 :]), kwargs
    name = next(name for name in names if name in kwargs)
    return args, {**kwargs, name: new}
