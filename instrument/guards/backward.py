"""backward and autograd.grad: a loss that is NaN or Inf (NS509), and gradients that nobody's optimizer will judge (NS506).

With an optimizer, gradients are judged when it steps. Many old scripts have none and update by hand (`p.data -= lr * p.grad`): there the
gradients are judged as soon as `backward` returns, and only their non-finite elements are set to 0 (no clipping, so accumulation is safe).
What `torch.autograd.grad` returns is the caller's at once, so it is judged there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_flatten, tree_unflatten

from instrument.distributed.agreement import AGREEMENT, is_at_work
from instrument.distributed.shards import is_sharded
from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.guards.parameter_names import parameter_names
from instrument.run import Run
from instrument.runtime import RUNTIME, StopReplay, function_modes, is_plain, is_plain_on_cpu, without_function_modes
from instrument.tensors import leaves_behind
from latent_drift.numerics.finite import is_finite
from latent_drift.numerics.gradients import global_norm, zero_nonfinite_

NONFINITE_LOSS = "NS509"
NONFINITE_GRADIENT = "NS506"

_graph_task = torch._C._current_graph_task_id  # -1 outside backward
_in_transform = torch._C._functorch.peek_interpreter_stack

# Threads whose backward is under way: under a mode torch calls this very name once more, and a checkpoint calls it from inside. One is judged.
_UNDER_WAY: set[int] = set()

_COVERED_LOOKS = 3  # backward calls after which the leaves of a script with optimizers are taken to be theirs


def spellings() -> list[Spelling]:
    """`Tensor.backward` reaches `torch.autograd.backward`: it is replaced only to tidy up once it is over."""
    return [
        Spelling(torch.Tensor, "backward", "method"),
        Spelling(torch.autograd, "backward", "backward"),
        Spelling(torch.autograd, "grad", "grad"),
        Spelling(GradScaler, "scale", "scale"),
        Spelling(torch.func, "grad", "func"),
        Spelling(torch.func, "grad_and_value", "func"),
        Spelling(torch.func, "vmap", "vmap"),
        Spelling(torch, "vmap", "vmap"),
    ]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """What replaces each of them. On an accelerator the loss is not read: its gradients tell at the step."""
    return {"method": _method, "backward": _backward, "grad": _grad, "scale": _scale, "func": _functional, "vmap": _vectorized}[spelling.op](
        original, spelling
    )


def _method(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if RUNTIME.active and not is_compiling():
            RUNTIME.run.search.settle()
        return result

    return guarded


def _roots(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Sequence[Any]:
    roots = args[0] if args else kwargs.get(name)
    return roots if isinstance(roots, list | tuple) else (roots,)


def _backward(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        thread = get_ident()
        if RUNTIME.replaying == thread:
            raise StopReplay
        if is_compiling() or not RUNTIME.active or thread in _UNDER_WAY or _graph_task() != -1:
            return original(*args, **kwargs)
        run = RUNTIME.run
        roots = _roots(args, kwargs, "tensors")
        _UNDER_WAY.add(thread)
        try:
            scaled = run.scaled_loss is not None and _is_scaled(run, roots)
            if not scaled:
                for root in roots:
                    _look_at(run, root)
            if run.search.suspects.pending is not None:
                run.search.meet_graph(roots)
            result = _among_others(run, original, args, kwargs) if is_at_work() and run.policy.act else original(*args, **kwargs)
            if not scaled and _nobody_steps(run, roots):
                _judge_leaves(run, roots)
        finally:
            _UNDER_WAY.discard(thread)
        return result

    return guarded


def _among_others(run: Run, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pass (not one inside another, as checkpoints make) that may reduce gradients over several processes."""
    _find_optimizers(run)
    watched = AGREEMENT.before_backward(run)
    result = original(*args, **kwargs)
    AGREEMENT.after_backward(run, watched)
    return result


def _is_scaled(run: Run, roots: Sequence[Any]) -> bool:
    """Whether one is a scaled loss, whose value says nothing: it was judged before it was scaled."""
    return run.scaled_loss is not None and any(run.scaled_loss() is root for root in roots)


def _look_at(run: Run, root: Any) -> None:
    if not isinstance(root, Tensor) or root.numel() != 1:
        return
    if not is_plain_on_cpu(root):
        if is_plain(root):
            run.history.see_loss_on_device(root)
        return
    if function_modes():
        with without_function_modes():
            value = root.item()
    else:
        value = root.item()
    run.history.loss = value
    if not math.isfinite(value) and not run.allows("backward"):
        run.search.blame([root])
        message = f"the loss is {value} when backward is called; its gradients are judged before use"
        run.unrepaired(run.note(NONFINITE_LOSS, "observed", "backward", x=root, message=message))


def _scale(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if RUNTIME.active and not is_compiling() and isinstance(result, Tensor):
            loss = args[1] if len(args) > 1 else kwargs.get("outputs")
            _look_at(RUNTIME.run, loss)
            RUNTIME.run.mark_scaled(result)
            RUNTIME.run.recovery.training.meet_scaler(args[0])
        return result

    return guarded


# Gradients that no optimizer will judge -------------------------------------------------------------------------------


def _nobody_steps(run: Run, roots: Sequence[Any]) -> bool:
    """Whether the leaves behind these roots are updated by hand, as far as can be known.

    An optimizer that was built before the block is found once, among all objects. Where there are optimizers, the first calls of backward
    still compare their parameters with the leaves: a script may use both.
    """
    if run.backward_calls == 0:
        _find_optimizers(run)
    run.backward_calls += 1
    if not run.has_steps and not run.optimizers:
        return True
    if run.backward_calls > _COVERED_LOOKS:
        return run.updates_by_hand
    stepped = {id(p) for optimizer in list(run.optimizers) for group in optimizer.param_groups for p in group["params"]}
    # The leaves of a sharded model are whole parameters that are there for one pass; what its optimizer holds are the shards.
    sharded = any(is_sharded(p) for optimizer in list(run.optimizers) for group in optimizer.param_groups for p in group["params"])
    run.updates_by_hand = not sharded and any(id(leaf) not in stepped for leaf in leaves_behind(roots))
    return run.updates_by_hand


def _find_optimizers(run: Run) -> None:
    """Meet the optimizers that were built before the block. A search among all objects takes long, so it is done once."""
    if run.backward_calls == 0:
        for optimizer in run.recovery.training.search():
            run.optimizers.add(optimizer)
        run.backward_calls = 1


def _judge_leaves(run: Run, roots: Sequence[Any]) -> None:
    stepped = {id(p) for optimizer in list(run.optimizers) for group in optimizer.param_groups for p in group["params"]}
    leaves = [leaf for leaf in leaves_behind(roots) if leaf.grad is not None and id(leaf) not in stepped]
    written = run.recovery.hand_written
    updated = [leaf for leaf in leaves if not stepped or isinstance(leaf, nn.Parameter) or written.is_written(leaf)]
    run.kept.meet(updated)
    with torch.no_grad(), without_function_modes():
        norm = run.history.norm = global_norm([leaf.grad for leaf in leaves if leaf.grad is not None])
        run.layers.see_leaves(leaves, not math.isfinite(norm))
        if not math.isfinite(norm):
            bad = [leaf for leaf in leaves if leaf.grad is not None and not is_finite(leaf.grad)]
            run.search.blame()
            acts = run.policy.act
            names = ", ".join(parameter_names(bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            message = f"the gradient of {len(bad)} of {len(leaves)} tensors ({names}) is not finite after backward"
            said = "; those elements were set to 0" if acts else ""
            run.note(NONFINITE_GRADIENT, "zeroed" if acts else "observed", "backward", x=bad[0].grad, message=message + said)
            if acts:
                run.history.outcome = "zeroed"
                zero_nonfinite_([leaf.grad for leaf in bad if leaf.grad is not None])
    if updated:
        run.update_by_hand_finished(updated)


def _finish_functional_step(run: Run, inputs: Sequence[Any]) -> None:
    """Training by `autograd.grad`: what was asked for is the update, if it is of leaves that are no optimizer's while none has stepped (else it
    may be a saliency map in the middle of a step)."""
    _find_optimizers(run)
    optimizers = list(run.optimizers)
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.is_leaf]
    if not leaves or not all(run.is_first_step(optimizer) for optimizer in optimizers):
        return
    owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not any(id(leaf) in owned for leaf in leaves):
        run.kept.meet(leaves)
        run.update_by_hand_finished(leaves)


def _grad(original: Function, spelling: Spelling) -> Function:
    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        # Under a mode torch calls this very name once more, from inside the mode's handler: that call is judged.
        handled_inside = function_modes()
        result = original(*args, **kwargs)
        if is_compiling() or not RUNTIME.active or handled_inside or not isinstance(result, tuple):
            return result
        run = RUNTIME.run
        try:
            return judged(run, result, args, kwargs)
        finally:
            if run.policy.act and not kwargs.get("create_graph") and len(args) < 5:
                _finish_functional_step(run, _roots(args[1:], kwargs, "inputs"))

    def judged(run: Run, result: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        roots = _roots(args, kwargs, "outputs")
        if _is_scaled(run, roots):
            return result
        for root in roots:
            _look_at(run, root)
        plain = [g for g in result if is_plain(g) and g.is_cpu and g.numel()]
        with without_function_modes():
            norm = run.history.norm = global_norm([g.detach() for g in plain])
            if math.isfinite(norm):
                return result
            acts = run.policy.act
            run.search.blame()
            bad = next(g for g in plain if not is_finite(g))
            said = "; those elements were set to 0" if acts else ""
            run.note(
                NONFINITE_GRADIENT, "zeroed" if acts else "observed", "grad", x=bad, message="torch.autograd.grad gave non-finite elements" + said
            )
            if not acts:
                return result
            # torch.where keeps the graph of create_graph=True, and every finite element as it was.
            mended = (torch.where(torch.isfinite(g), g, torch.zeros((), dtype=g.dtype)) if is_plain(g) and g.is_cpu else g for g in result)
            return type(result)(mended) if type(result) is tuple else result

    return guarded


# torch.func: functions that differentiate ------------------------------------------------------------------------------


def _functional(original: Function, spelling: Spelling) -> Function:
    """`torch.func.grad` gives a function; its gradients are judged when it is called outside of any other transform."""
    with_value = spelling.name == "grad_and_value"

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        derivative = original(*args, **kwargs)
        if is_compiling() or not RUNTIME.active or not callable(derivative):
            return derivative
        has_aux = bool(args[2] if len(args) > 2 else kwargs.get("has_aux", False))

        @functools.wraps(derivative)
        def judged(*inputs: Any, **options: Any) -> Any:
            result = derivative(*inputs, **options)
            if is_compiling() or not RUNTIME.active:
                return result
            if _in_transform() is not None:
                _differentiated_inside.append(get_ident())
                return result
            parted = with_value or has_aux
            gradients = _judged_tree(RUNTIME.run, result[0] if parted else result)
            return (gradients, *result[1:]) if parted else gradients

        return judged

    return guarded


_differentiated_inside: list[int] = []
"""Threads in which a function of `torch.func.grad` gave a gradient inside of another transform, where nothing is read."""


def _vectorized(original: Function, spelling: Spelling) -> Function:
    """`vmap(grad(f))`, gradients of each sample: they are judged where the outermost `vmap` gives them."""

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        vectorized = original(*args, **kwargs)
        if is_compiling() or not RUNTIME.active or not callable(vectorized):
            return vectorized

        @functools.wraps(vectorized)
        def judged(*inputs: Any, **options: Any) -> Any:
            if is_compiling() or not RUNTIME.active or _in_transform() is not None:
                return vectorized(*inputs, **options)
            thread = get_ident()
            _differentiated_inside.clear()
            result = vectorized(*inputs, **options)
            if thread not in _differentiated_inside:
                return result
            _differentiated_inside.clear()
            return _judged_tree(RUNTIME.run, result)

        return judged

    return guarded


def _judged_tree(run: Run, gradients: Any) -> Any:
    """Gradients in whatever containers they come: where they are to be used at once, each call counts as a step of a training without optimizer."""
    leaves, structure = tree_flatten(gradients)
    plain = [g for g in leaves if is_plain(g) and g.is_cpu and g.numel()]
    if not plain or len(plain) < len([g for g in leaves if isinstance(g, Tensor) and g.numel()]):
        return gradients
    with without_function_modes():
        norm = run.history.norm = global_norm([g.detach() for g in plain])
        if not math.isfinite(norm):
            run.search.blame(loss_is_seen=False)
            acts = run.policy.act
            bad = next((g for g in plain if not is_finite(g)), plain[0])
            said = "; those elements were set to 0" if acts else ""
            message = "the gradient that a function of torch.func gave is not finite" + said
            run.note(NONFINITE_GRADIENT, "zeroed" if acts else "observed", "func.grad", x=bad, message=message)
            if acts:
                leaves = [torch.where(torch.isfinite(g), g, torch.zeros((), dtype=g.dtype)) if is_plain(g) else g for g in leaves]
                gradients = tree_unflatten(leaves, structure)
    if all(run.is_first_step(optimizer) for optimizer in list(run.optimizers)):
        run.update_by_hand_finished([])
    return gradients
