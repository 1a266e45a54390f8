"""Child processes, workers, threads, copies, pickles and questions about a patched function get what they get outside."""

from __future__ import annotations

import asyncio
import copy
import inspect
import io
import multiprocessing
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import instrument
from tests.instrument.no_harm import worker_tasks
from tests.instrument.no_harm.bits import difference
from tests.instrument.no_harm.calls import elementwise, inputs, rows
from tests.instrument.no_harm.standins import identities, spellings

SPELLINGS = list({(id(s.owner), s.name): s for s in spellings()}.values())
every_spelling = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.path)


def _answers(function: Any) -> dict[str, Any]:
    """What a person or a tool asks about a function."""

    def asked(question: Any) -> Any:
        try:
            return question()
        except (ValueError, TypeError) as error:
            return type(error).__name__

    return {
        "name": getattr(function, "__name__", None),
        "doc": getattr(function, "__doc__", None),
        "signature": str(asked(lambda: inspect.signature(function))),
        "callable": callable(function),
        "class": inspect.isclass(function),
    }


@every_spelling
def test_questions_about_a_patched_name_are_answered_as_before(spelling: Any, guarded_names: dict[str, Any], plain_names: dict[str, Any]) -> None:
    assert guarded_names[spelling.path] == plain_names[spelling.path]


@pytest.fixture(scope="module")
def plain_names() -> dict[str, Any]:
    """Answers outside a block."""
    return {s.path: _answers(getattr(s.owner, s.name)) for s in SPELLINGS}


@pytest.fixture(scope="module")
def guarded_names(plain_names: dict[str, Any]) -> dict[str, Any]:
    """Answers inside a block."""
    with instrument.stable("1.0.0", profile="guard"):
        return {s.path: _answers(getattr(s.owner, s.name)) for s in SPELLINGS}


def test_a_pickled_function_loads_as_the_original_and_a_copy_is_itself() -> None:
    originals = {s.path: getattr(s.owner, s.name) for s in SPELLINGS}

    def is_pickled(function: Any) -> bool:
        try:
            pickle.dumps(function)
        except (pickle.PicklingError, TypeError, AttributeError):
            return False
        return True

    sent = [s for s in SPELLINGS if is_pickled(originals[s.path])]
    pickled, copied = {}, {}
    with instrument.stable("1.0.0", profile="guard"):
        for spelling in sent:
            stand_in = getattr(spelling.owner, spelling.name)
            pickled[spelling.path] = pickle.dumps(stand_in)
            copied[spelling.path] = copy.deepcopy(stand_in) is stand_in
    assert [path for path, alike in copied.items() if not alike] == []
    wrong = [path for path, data in pickled.items() if pickle.loads(data) is not originals[path] and pickle.loads(data) != originals[path]]
    assert wrong == []
    assert len(sent) > 50


def test_models_and_optimizers_copied_and_saved_inside_load_outside() -> None:
    with instrument.stable("1.0.0", profile="guard"):
        model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Softmax(-1), torch.nn.Softplus())
        optimizer = torch.optim.Adam(model.parameters())
        model(inputs()).sum().backward()
        optimizer.step()
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
        buffer = io.BytesIO()
        torch.save((model, optimizer), buffer)
        expected = model(inputs())
    buffer.seek(0)
    loaded, loaded_optimizer = torch.load(buffer, weights_only=False)
    assert difference(expected, loaded(inputs())) is None
    assert difference(expected, twin(inputs())) is None
    for each in (twin_optimizer, loaded_optimizer):
        assert each.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
        each.zero_grad()
        each.step()


def _child(method: str, target: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = context.Process(target=target, args=(queue, *arguments))
        process.start()
    try:
        return queue.get(timeout=100)
    finally:
        process.join(20)
        assert process.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_train_to_the_same_bits(method: str) -> None:
    threads = torch.get_num_threads()
    plain = worker_tasks.trained()
    torch.set_num_threads(threads)
    with instrument.stable("1.0.0", profile="guard"):
        assert _child(method, worker_tasks.train) == plain


def test_what_is_done_in_a_forked_child_is_told() -> None:
    with instrument.stable("1.0.0") as run:
        assert _child("fork", worker_tasks.overflow) == pytest.approx(torch.finfo(torch.float32).max, rel=1e-4)
        assert run.events == (), "told when the block closes"
    (event,) = run.events
    assert (event.code, event.action, event.count) == ("NS201", "bounded", 2)
    assert "in a process that the script forked" in event.message
    assert Path(event.file or "").name == "worker_tasks.py"


def test_a_spawned_child_starts_without_guards_and_gets_the_original_of_a_function_that_is_sent() -> None:
    with instrument.stable("1.0.0", profile="guard"):
        assert _child("spawn", worker_tasks.is_free_of_us) == ["builtin_function_or_method", "method_descriptor", True]
        assert _child("spawn", worker_tasks.apply_to, torch.exp) == torch.exp(inputs()).tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_give_the_same_batches(method: str) -> None:
    def batches() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = DataLoader(worker_tasks.Curves(), batch_size=3, num_workers=1, multiprocessing_context=method)
            return [batch.clone() for batch in loader]

    plain = [torch.stack([worker_tasks.Curves()[i] for i in range(a, a + 3)]) for a in range(0, 12, 3)]
    with instrument.stable("1.0.0", profile="guard") as run:
        assert difference(plain, batches()) is None
    assert run.events == ()


def test_threads_compute_the_same_while_blocks_open_and_close() -> None:
    expected = rows(torch.tanh(elementwise(inputs())))
    before = identities()
    stop = threading.Event()
    wrong: list[str] = []

    def compute() -> None:
        while not stop.is_set():
            x = inputs().requires_grad_()
            out = rows(torch.tanh(elementwise(x)))  # beyond 10 they would be masked, and the loss with them
            out.sum().backward()
            if difference(expected, out.detach()) is not None:
                wrong.append("other bits")

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            with instrument.stable("1.0.0", profile="guard"):
                rows(torch.tanh(elementwise(inputs())))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert identities() == before


def test_blocks_in_several_threads_at_once_leave_torch_as_it_was() -> None:
    before = identities()

    def work(_: int) -> Any:
        with instrument.stable("1.0.0", profile="guard"):
            return rows(elementwise(inputs()))

    expected = rows(elementwise(inputs()))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12)))
    assert all(difference(expected, result) is None for result in results)
    assert identities() == before


def test_coroutines_that_share_a_loop() -> None:
    before = identities()

    async def work(delay: float) -> Any:
        async with instrument.stable("1.0.0", profile="guard"):
            await asyncio.sleep(delay)
            return rows(elementwise(inputs()))

    async def main() -> Any:
        return await asyncio.gather(*(work(0.01 * k) for k in (3, 1, 2)))

    results = asyncio.run(main())
    assert all(difference(rows(elementwise(inputs())), result) is None for result in results)
    assert identities() == before
