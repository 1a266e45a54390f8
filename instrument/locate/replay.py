"""The forward pass that made a bad number, done once more under the watching mode: for a step that no other follows.

The statements of the script's running functions that made what is bad are evaluated again, on copies of their names, with every operation looked at;
where only the gradient was bad, backward is done again too. It is the last resort: after a failure that neither a guard, nor the graph, nor a
following step explains, when the script stops at a bad loss by itself, or when it dies of one.

Left as they were: parameters, buffers, plain attributes of modules, random streams, gradients, the log. An update or a `backward` that is met on the
way ends the replay there. Random draws are others than the first time, and what a function does outside of its tensors (a counter in a global) it
does once more; nothing is printed. Among processes that train one model nothing is done again: the others would not take part.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instrument.armed_lines import ArmedLines
from instrument.distributed.agreement import is_at_work
from instrument.events import Site
from instrument.locate.births import Birth, Births
from instrument.locate.scene import Scene, assigned, differentiated, read, repeatable, statements_before
from instrument.locate.watch import Watching
from instrument.runtime import RUNTIME, StopReplay, is_plain, without_function_modes
from instrument.tensors import is_bad
from latent_drift.numerics.snapshot import RandomSnapshot

if TYPE_CHECKING:
    from instrument.run import Run

_LOG = logging.getLogger(__name__)
_differentiate = torch.autograd.grad

MOST_REPLAYS = 3
"""Of a run: a script that goes on after a bad loss may meet them for ever."""

MOST_COPIED = 2**26  # elements of the names' tensors; larger ones are not protected from writes in place


class Replays:
    """What the script's functions held at a failure that nothing has explained yet, until it is explained or done once more."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self._done = 0

    @property
    def is_wanted(self) -> bool:
        """Whether a failure waits for an explanation."""
        return bool(self.scenes)

    def remember(self, scenes: Sequence[Scene]) -> None:
        """Keep what the script's functions hold now, unless an earlier failure still waits."""
        if not self.scenes and self._done < MOST_REPLAYS and not is_at_work():
            self.scenes = list(scenes)

    def drop(self) -> None:
        """It was explained."""
        self.scenes = []

    def look(self, run: Run) -> Birth | None:
        """Do it once more; the first birth, or, where the numbers came out well this time, the line whose result was bad although what it reads
        was not."""
        scenes, self.scenes = self.scenes, []
        if not scenes or self._done >= MOST_REPLAYS or is_at_work() or RUNTIME.replaying or torch._C._len_torch_dispatch_stack() > 0:
            return None
        if len(run.threads) > 1:
            return None
        self._done += 1
        try:
            with aside(run, scenes):
                for scene in scenes:
                    found = _again(run, scene, innermost=scene is scenes[0])
                    if found is not None:
                        return found
        except Exception:  # of statements that are run once more for our sake: the script's own run of them is over
            _LOG.debug("a forward pass could not be done once more", exc_info=True)
            return None
        return next(filter(None, map(_by_names, scenes)), None)


def _again(run: Run, scene: Scene, *, innermost: bool) -> Birth | None:
    """One function's statements. What an outer one is in the middle of is the call of the inner one: that is not begun anew."""
    statements = [s for s in statements_before(scene) if innermost or not _is_running(s, scene)]
    with without_function_modes():
        bad = {name for name, value in scene.names.items() if _holds_bad(value)}
    for wanted in [names for names in (bad & scene.graded or bad, scene.graded) if names] or [set()]:
        found = _evaluated(run, scene, [s for s in statements if assigned(s) & wanted or _is_assigning(s, scene)], statements, backward=not bad)
        if found is not None:
            return found
    return None


def _is_running(statement: ast.stmt, scene: Scene) -> bool:
    return statement.lineno <= scene.line <= (statement.end_lineno or statement.lineno)


def _is_assigning(statement: ast.stmt, scene: Scene) -> bool:
    """Whether the number was found bad inside of this very statement, whose name has no value yet: a call of `torch.func.grad`."""
    return _is_running(statement, scene) and isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)


def _evaluated(run: Run, scene: Scene, chosen: list[ast.stmt], statements: list[ast.stmt], *, backward: bool) -> Birth | None:
    names = {**scene.namespace, **_copies(scene.names)}
    mode = Watching(run)
    run.search.births = Births()
    ended = False
    with _stopping(), mode, torch.enable_grad():
        for statement in chosen:
            made = repeatable(statement)
            if made is not None:
                exec(compile(ast.Module([made], []), scene.file, "exec"), names)
        root = differentiated(statements)
        if root is not None and (backward or not isinstance(root, ast.Name)):
            value = eval(compile(ast.Expression(root), scene.file, "eval"), names)
            if backward and isinstance(value, Tensor) and value.requires_grad and not is_bad(value):
                _differentiate(value.sum(), _leaves(run), allow_unused=True)
        ended = True
    mode.done = True
    birth = run.search.births.origin(loss_is_finite=backward and ended)
    return None if birth is None else replace(birth, site=_in_function(birth.site, scene))


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """A replay may end anywhere: what was born until then is known."""
    try:
        yield
    except (Exception, StopReplay):
        _LOG.debug("a replay ended early", exc_info=True)


def _in_function(site: Site, scene: Scene) -> Site:
    return replace(site, function=scene.function) if site.function == "<module>" and site.file == scene.file else site


def _leaves(run: Run) -> list[Tensor]:
    modules = run.recovery.training.modules()
    found: list[Tensor] = [p for module in modules for p in module._parameters.values() if p is not None]
    found += [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    found += run.kept.leaves()
    return list({id(p): p for p in found if p.requires_grad}.values())


def _holds_bad(value: Any) -> bool:
    if isinstance(value, nn.Parameter):
        return False
    items = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(x, Tensor) and is_plain(x) and not isinstance(x, nn.Parameter) and is_bad(x) for x in items)


def _copies(names: dict[str, Any]) -> dict[str, Any]:
    """Names whose tensors and lists may be written into."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor) and is_plain(value) and not value.requires_grad and value.numel() <= MOST_COPIED:
            return value.clone()
        return list(value) if type(value) is list else value

    return {name: copied(value) for name, value in names.items()}


def _by_names(scene: Scene) -> Birth | None:
    """The first statement that gave a bad value to a name and read none."""
    with without_function_modes():
        bad = {name for name in scene.graded if _holds_bad(scene.names[name])}
    for statement in statements_before(scene):
        single = isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign)
        if single and assigned(statement) & bad:
            if (read(statement) - assigned(statement)) & bad:
                return None
            source = ast.unparse(statement).splitlines()[0]
            names = ", ".join(sorted(assigned(statement) & bad))
            message = f"{names} is not finite after this line, and what the line reads is"
            return Birth("NS805", "assignment", Site(scene.file, statement.lineno, scene.function, source), message)
    return None


@contextlib.contextmanager
def aside(run: Run, scenes: Sequence[Scene]) -> Iterator[None]:
    """What happens inside leaves no trace."""
    random = RandomSnapshot()
    modules = run.recovery.training.modules()
    held = [value for scene in scenes for value in scene.names.values()]
    modules += [m for value in held if isinstance(value, nn.Module) for m in value.modules()]
    modules = list({id(m): m for m in modules}.values())
    buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    attributes = [(m, {k: v for k, v in vars(m).items() if isinstance(v, int | float | str)}) for m in modules]
    leaves = _leaves(run) + [value for value in held if isinstance(value, Tensor) and value.requires_grad and value.is_leaf]
    with torch.no_grad(), without_function_modes():
        parameters = [(p, p.detach().clone(), p.grad) for p in leaves]
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.clone()
    resume = run.pause_recording()
    armed, run.armed = run.armed, ArmedLines(run.policy)  # the first time nothing was bounded there
    seen = run.history.loss, run.scaled_loss, run.ranges.now
    run.ranges.now = defaultdict(list)
    RUNTIME.replaying = get_ident()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        RUNTIME.replaying = 0
        run.armed = armed
        run.history.loss, run.scaled_loss, run.ranges.now = seen
        resume()
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, values in attributes:
            vars(module).update(values)
        with torch.no_grad(), without_function_modes():
            for p, before, gradient in parameters:
                p.grad = gradient
                if not torch.equal(p.detach().nan_to_num(), before.nan_to_num()):
                    p.data.copy_(before)  # unseen by autograd: another model's graph may still be waiting for its backward pass
        random.restore()
