"""`stable-run --children`: DataLoader workers, spawned ranks and a user's own Process run guarded too, and what they did is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.instrument.distributed.launch import free_port

ROOT = Path(__file__).parents[2]

SCRIPT = """
import multiprocessing, sys
import torch
import torch.distributed as dist
from torch import nn

class Overflowing(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index): return torch.exp(torch.tensor(100.0 * index))

class Own(multiprocessing.Process):
    def run(self):
        print("own", torch.exp(torch.tensor(300.0)).isfinite().item(), flush=True)

def rank_main(rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(4):
        x = torch.randn(3, 4) * (float("nan") if rank == 1 and step == 2 else 1.0)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    sys.stdout.write(f"rank {model.module.weight.isfinite().all().item()}\\n")
    dist.destroy_process_group()

if __name__ == "__main__":
    values = torch.stack(list(torch.utils.data.DataLoader(Overflowing(), batch_size=None, num_workers=1)))
    print("loader", values.isfinite().all().item(), flush=True)
    child = Own(name="my own")
    child.start()
    child.join()
    torch.multiprocessing.spawn(rank_main, args=(int(sys.argv[1]),), nprocs=2)
"""


def stable_run(folder, *options):
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "instrument", "run", "--profile", "guard", *options, "train.py", str(free_port())]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def events_in(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.xdist_group("children")
def test_children_are_guarded_and_say_what_they_did(tmp_path):
    result = stable_run(tmp_path, "--children", "--report", "out")
    assert sorted(result.stdout.split("\n")[:-1]) == ["loader True", "own True", "rank True", "rank True"]
    children = tmp_path / "out" / "children"
    assert {event["rank"] for event in events_in(children) if event["code"] == "NS506"} == {0, 1}
    assert (children / "report.html").exists()
    others = [path for path in children.iterdir() if path.is_dir() and not path.name.startswith("rank-")]
    found = {path.name.rpartition("-")[0].split("-")[0]: [e["code"] for e in events_in(path)] for path in others}
    assert found["my"] == ["NS201"]
    assert ["NS201"] in [codes for name, codes in found.items() if name != "my"], "the DataLoader's worker"


@pytest.mark.slow
def test_without_the_option_children_are_as_they_were(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    result = stable_run(tmp_path, "--report", "out")
    assert "rank False" in result.stdout, "spawned processes open no block of their own"
    assert not (tmp_path / "out" / "children").exists()
