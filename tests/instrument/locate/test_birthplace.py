"""Data that went bad in numpy or plain Python, before torch: the statement that made it so is the one that is named."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import instrument


def line_of(text):
    """The number of the one line of this file that ends in the comment."""
    lines = [i for i, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), start=1) if line.endswith(f"  # {text}")]
    assert len(lines) == 1
    return lines[0]


def fit(run_on, steps=4):
    """Train on a table, as the script's own loop does."""
    net = nn.Linear(run_on.shape[1], 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(steps):
        batch = run_on[4 * (step % 2) : 4 * (step % 2) + 4]
        optimizer.zero_grad()
        net(batch).abs().mean().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def clicks():
    return np.array([3.0, 0.0, 5.0, 2.0, 1.0, 4.0, 6.0, 7.0]), np.array([5.0, 0.0, 9.0, 8.0, 2.0, 4.0, 7.0, 9.0])


def test_a_quotient_in_numpy_is_followed_through_the_variables():
    with instrument.stable() as run, np.errstate(all="ignore"):
        clicked, shown = clicks()
        rate = clicked / shown  # 0 of 0
        features = np.stack([rate, clicked], 1)
        table = torch.from_numpy(features).float()
        fit(table)
    assert (run.first_cause.code, run.first_cause.line) == ("NS803", line_of("0 of 0"))
    assert "is the first to meet it" in run.first_cause.message


class Scaler:
    def fit(self, x):
        self.mean, self.spread = x.mean(0), x.std(0)
        return self

    def transform(self, x):
        centred = x - self.mean
        return centred / self.spread  # a column without spread


def columns():
    generator = np.random.default_rng(0)
    return np.stack([generator.normal(size=8), np.ones(8)], 1).astype(np.float32)


@pytest.mark.parametrize("shown", [True, False], ids=["numpy warns", "warnings are off"])
def test_a_method_is_looked_into_though_the_variable_was_overwritten(shown):
    """`table` holds the scaled numbers by then: what it was made of is made once more."""
    with warnings.catch_warnings(record=True), instrument.stable() as run:
        warnings.simplefilter("always" if shown else "ignore")
        table = columns()
        table = Scaler().fit(table).transform(table)
        table = torch.from_numpy(table)
        fit(table)
    assert run.first_cause.line == line_of("a column without spread")


def lagged(x, k):
    out = np.full_like(x, np.nan)  # what nobody fills
    out[k:] = x[:-k]
    return out


def test_a_nan_that_a_function_writes_down_is_its_line():
    with instrument.stable() as run:
        table = torch.from_numpy(np.stack([lagged(np.arange(8.0), 1), lagged(np.arange(8.0), 2)], 1)).float()
        fit(table)
    assert run.first_cause.line == line_of("what nobody fills")


def test_a_list_of_rows_is_followed_to_what_was_appended():
    with instrument.stable() as run:
        rows = []
        for cell in ["1.5", "", "2.5", "3.5", "4.5", "1.25", "2.25", "3.25"]:
            rows.append([float(cell) if cell else float("nan"), 1.0])  # an empty cell
        table = torch.tensor(rows)
        fit(table)
    assert run.first_cause.line == line_of("an empty cell")


def restored(signal, kernel):
    spectrum = torch.fft.rfft(kernel)
    return torch.fft.irfft(torch.fft.rfft(signal) / spectrum, n=8)  # a frequency that the kernel has not


def test_complex_numbers_that_no_guard_judges_are_found_by_doing_it_once_more():
    kernel = torch.zeros(8)
    kernel[:4] = 0.25
    signal = torch.rand(8, 8)
    with instrument.stable() as run:
        table = restored(signal, kernel)
        fit(table)
    assert run.first_cause.line == line_of("a frequency that the kernel has not")


def test_what_cannot_have_made_it_is_not_named():
    """A function that is given the table wrote into it: which one cannot be told, and a call of `randn` makes no NaN."""

    def spoil(x):
        x.view(-1)[3] = x.new_tensor(0.0) / x.new_tensor(0.0)

    spoilers = [spoil]
    with instrument.stable() as run:
        table = torch.randn(8, 2)  # never this
        for each in spoilers:
            each(table)
        fit(table)
    assert run.first_cause.line != line_of("never this")


def test_nothing_that_writes_or_asks_is_done_once_more(tmp_path):
    calls = []

    def read(path):
        calls.append(path)
        with open(path, encoding="utf-8") as file:
            values = [float(line) for line in file]
        return np.array(values)

    (tmp_path / "x.txt").write_text("\n".join(["1.5", "nan", "2.5", "3.5", "1.25", "2.25", "3.25", "4.25"]), encoding="utf-8")
    with instrument.stable() as run:
        values = read(tmp_path / "x.txt")  # the file
        table = torch.from_numpy(values).float()[:, None]
        fit(table)
    assert len(calls) == 1
    assert run.first_cause.line == line_of("the file")


def test_doing_it_once_more_leaves_no_trace():
    generator = np.random.default_rng(3)
    own = torch.Generator().manual_seed(3)
    said = []

    def noisy(n):
        x = generator.normal(size=n) + torch.rand(n, generator=own).numpy()
        x[2] = 0.0
        said.append(n)
        return (x / x)[:, None]

    with instrument.stable() as run, np.errstate(all="ignore"):
        made = noisy(8)
        table = torch.from_numpy(made).float()
        fit(table)
    after = generator.normal(), float(torch.rand((), generator=own))
    generator, own = np.random.default_rng(3), torch.Generator().manual_seed(3)
    with np.errstate(all="ignore"):
        noisy(8)
    assert after == (generator.normal(), float(torch.rand((), generator=own)))
    assert run.first_cause.code == "NS803"


def test_a_rate_that_numpy_made_infinite_is_named_where_numpy_warned():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with warnings.catch_warnings(record=True), instrument.stable() as run:
        warnings.simplefilter("always")
        for step in range(4):
            optimizer.param_groups[0]["lr"] = float(0.1 / np.sqrt(np.float64(step)))  # the first step is step 0
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
    assert p.isfinite().all()
    assert run.first_cause.line == line_of("the first step is step 0")


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        allowed = torch.eye(2)
        bias = (1 - allowed) * float("-inf")  # 0 times infinity
        self.register_buffer("bias", bias)

    def forward(self, x):
        return torch.softmax(self.linear(x) + self.bias, -1)


def test_a_buffer_is_followed_into_the_module_that_made_it():
    net = Biased()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with instrument.stable() as run:
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.ones(2, 2)).square().mean().backward()
            optimizer.step()
    assert run.first_cause.line == line_of("0 times infinity")


def test_a_rate_that_a_line_spoilt_which_went_well_before():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    last = torch.zeros(())
    with instrument.stable() as run:
        for step in range(8):
            now = torch.zeros(()) if step > 4 else torch.ones(())
            change = (last - now).abs() / last  # infinite in the first epoch, and NaN when nothing changes from nothing
            optimizer.param_groups[0]["lr"] = 0.1 * change.clamp(max=1.0).item()
            last = now
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
    assert p.isfinite().all()
    assert run.first_cause.line == line_of("infinite in the first epoch, and NaN when nothing changes from nothing")


def silent_scores(a):
    mean = a.mean(axis=0)
    spread = a.std(axis=0)
    with np.errstate(all="ignore"):
        return (a - mean) / spread  # silently 0 by 0


def batches_of(table):
    for start in range(0, len(table), 4):
        yield torch.from_numpy(table[start : start + 4])


def test_a_function_that_silences_numpy_is_followed_line_by_line():
    raw = columns()
    scores = silent_scores(raw)
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with instrument.stable() as run:
        for batch in batches_of(scores):
            optimizer.zero_grad()
            net(batch).abs().mean().backward()
            optimizer.step()
    assert (run.first_cause.code, run.first_cause.line) == ("NS803", line_of("silently 0 by 0"))


class Waves(torch.utils.data.Dataset):
    """Items that are computed as they are asked for, from counts of which one item has a 0."""

    def __init__(self):
        self.asked = 0
        self.generator = np.random.default_rng(3)
        self.counts = [np.arange(1 if i != 6 else 0, 5 if i != 6 else 4, dtype=np.float32) for i in range(12)]

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, i):
        self.asked += 1
        noise = self.generator.normal(size=4).astype(np.float32)
        with np.errstate(all="ignore"):
            entropy = self.counts[i] * np.log(self.counts[i])  # of a count of 0
        return torch.from_numpy(entropy), torch.tensor([float(noise[0])])


def train_on_waves(waves):
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        for x, y in torch.utils.data.DataLoader(waves, batch_size=3):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    return net


def test_an_item_of_a_data_set_is_made_once_more_and_nothing_else_is_moved():
    plain = Waves()
    train_on_waves(plain)
    waves = Waves()
    with instrument.stable() as run:
        net = train_on_waves(waves)
    assert run.first_cause is not None
    assert (run.first_cause.code, run.first_cause.line) == ("NS803", line_of("of a count of 0"))
    assert "an item of the data set is made so at" in run.first_cause.message
    assert (waves.asked, waves.generator.normal()) == (plain.asked, plain.generator.normal())
    assert all(p.isfinite().all() for p in net.parameters())


class HalfTable(torch.utils.data.Dataset):
    """A table in half precision, brought to unit variance by statistics that are taken once."""

    def __init__(self):
        self.x = torch.cat([torch.linspace(100.0, 900.0, 24)[:, None], torch.linspace(-1.0, 1.0, 24)[:, None]], 1).half()
        self.mean, self.std = self.statistics()

    def statistics(self):
        mean = self.x.float().mean(0)
        square = (self.x * self.x).float().mean(0)  # beyond half precision
        return mean, (square - mean * mean).clamp(min=1e-6).sqrt()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return (self.x[i].float() - self.mean) * (1.0 / self.std) * self.std, torch.ones(1)


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_data_set_computed_when_it_was_made_is_named_where_it_did(whole):
    table = HalfTable()
    assert torch.isinf(table.std[0]), "negative control"
    data = table if whole else torch.utils.data.random_split(table, [18, 6])[0]
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with instrument.stable() as run:
        for x, y in torch.utils.data.DataLoader(data, batch_size=6):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    assert (run.first_cause.code, run.first_cause.line) == ("NS803", line_of("beyond half precision"))
    assert all(p.isfinite().all() for p in net.parameters())


def rate_of_step(step):
    step = np.float64(step)
    decay, ramp = step**-0.5, step * 1e-3  # of step 0
    return float(decay * ramp / max(decay, ramp))


def test_a_learning_rate_that_numpy_made_bad_is_named_at_the_first_of_its_lines():
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with warnings.catch_warnings(record=True) as given, instrument.stable() as run:
        warnings.simplefilter("always", RuntimeWarning)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_of_step)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(4, 2)).mean().backward()
            optimizer.step()
            schedule.step()
    assert [str(one.message).partition(" encountered")[0] for one in given] == ["divide by zero", "invalid value"]
    assert run.first_cause.line == line_of("of step 0")
    assert all(p.isfinite().all() for p in net.parameters())
