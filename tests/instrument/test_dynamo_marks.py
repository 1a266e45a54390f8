"""The one mark that outlives a block: the first torch.compile of a process switches tracing off for LBFGS.step and SparseAdam.step, once and for all.

Where that happens inside a block the original carries the mark afterwards, as it does in plain torch, and nothing of the stand-in stays."""

import subprocess
import sys

SCRIPT = """
import contextlib, sys, torch
guarded = sys.argv[1] == "guarded"
classes = (torch.optim.LBFGS, torch.optim.SparseAdam)
before = [vars(c)["step"] for c in classes]
if guarded:
    import instrument
with instrument.stable(profile="guard") if guarded else contextlib.nullcontext():
    inside = [vars(c)["step"] for c in classes]
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    for _ in range(2):
        w = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.LBFGS([w])
        def closure():
            optimizer.zero_grad(); loss = (w * w).sum(); loss.backward(); return loss
        optimizer.step(closure)
after = [vars(c)["step"] for c in classes]
for was, stood, now in zip(before, inside, after):
    marked, original = getattr(now, "_torchdynamo_disable", False), getattr(now, "_torchdynamo_orig_callable", None)
    print(now is was, marked, original is was, stood is was, now.__module__, now.__qualname__)
marked = [vars(c)["step"] for c in classes]
if guarded:
    with instrument.stable(profile="guard"):
        torch.compile(lambda x: x + 2, backend="eager")(torch.ones(2))
print([vars(c)["step"] is m for c, m in zip(classes, marked)], w.detach().tolist())
"""


def _run(how):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [line.split(" ", 5) for line in done.stdout.splitlines()]


def test_after_a_block_the_original_carries_dynamos_mark_as_in_plain_torch():
    plain, guarded = _run("plain"), _run("guarded")
    for before, after in zip(plain[:2], guarded[:2], strict=True):
        assert before[3] == "True"
        assert after[3] == "False", "negative control: a stand-in was there when Dynamo put its mark"
        assert after[:3] == before[:3]
        assert after[4:] == before[4:]
        assert before[1:3] == ["True", "True"], "negative control: Dynamo marks them"
    assert plain[2:] == guarded[2:], "a second block puts the very same object back, and the parameters are the same"
