"""`torchrun -m instrument run --report DIR train.py`: one report of all ranks, also when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instrument.distributed.launch import environment, free_port

pytestmark = pytest.mark.xdist_group("distributed-torchrun")

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
for step in range(6):
    x = torch.randn(3, 4)
    if rank == 1 and step == 2:
        x = x * float("nan")
    optimizer.zero_grad()
    loss = model(x).square().mean()
    if rank == 1 and step == 4 and sys.argv[1] == "raise":
        raise RuntimeError("a fault of its own")
    if rank == 1 and step == 4 and sys.argv[1] == "die":
        os._exit(9)
    loss.backward()
    optimizer.step()
print(f"finite {model.module.weight.isfinite().all().item()}\\n", end="")  # one write: both ranks share the pipe
dist.destroy_process_group()
"""


def torchrun(folder, how):
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "instrument", "run", "--report", "out", "train.py", how]
    env = {**environment(), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("how", ["run", pytest.param("raise", marks=pytest.mark.slow), "die"])
def test_one_report_that_names_the_rank(tmp_path, how):
    ended = torchrun(tmp_path, how)
    assert (ended.returncode == 0) == (how == "run"), ended.stderr[-3000:]
    assert ended.stdout.count("finite True") == (2 if how == "run" else 0)
    if how == "raise":
        assert "a fault of its own" in ended.stderr
    out = tmp_path / "out"
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    skipped = {event["rank"]: event["message"] for event in events if event["code"] == "NS506"}
    assert skipped.keys() == {0, 1}, "both left the step out"
    assert "it began on rank 1" in skipped[0]
    assert {event["rank"] for event in events if event["code"] == "NS509"} == {1}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ranks"] == [0, 1]
    assert summary["skipped"] == 1
    assert (out / "report.html").exists()
    if how == "run":
        again = subprocess.run(
            [sys.executable, "-m", "instrument", "report", "out"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert "(rank 1)" in again.stdout
