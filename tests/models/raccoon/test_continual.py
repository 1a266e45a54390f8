import copy

import numpy as np
import pytest
import torch

from latent_drift.config import load
from latent_drift.models.log_data import LogDataset
from latent_drift.models.raccoon import RaccoonLogClassifier
from latent_drift.models.train_raccoon import continuous_learning_phase, train_raccoon_classifier


def classifier(**kwargs):
    torch.manual_seed(0)
    return RaccoonLogClassifier(40, 4, **kwargs)


@pytest.fixture(scope="module")
def trained():
    model = classifier()
    train_raccoon_classifier(model, LogDataset(4000, seed=0), 60)
    return model


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def accuracy(model, tokens, labels):
    return (model.predict(tokens) == labels).double().mean().item()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_learns_where_the_caller_has_switched_gradients_off(mode):
    expected, model = classifier(), classifier()
    for each in (expected, model):
        torch.manual_seed(1)
        tokens, labels = LogDataset(8, seed=1).batch(range(8))
        if each is model:
            with mode():
                for _ in range(2):
                    each.continuous_update(tokens.clone(), labels.clone())  # made under the mode, as predictions there are
        else:
            for _ in range(2):
                each.continuous_update(tokens, labels)
    assert torch.equal(weights(model), weights(expected))
    assert not any(tokens.is_inference() for tokens, _ in model.memory.buffer)


def test_learns_from_the_first_items_where_the_published_one_waits():
    batch = LogDataset(8, seed=1).batch(range(8))
    legacy, model = classifier(legacy_compat=True), classifier()
    for each, moves in ((legacy, False), (model, True)):
        before = weights(each).clone()
        outcome = each.continuous_update(*batch)
        assert (not torch.equal(weights(each), before)) == moves
        assert outcome["skipped"] == float(not moves)


def test_adaptation_moves_the_weights_where_the_published_one_does_nothing_measurable():
    def moved(model):
        before = weights(model).clone()
        data = LogDataset(160, seed=2)
        for i in range(0, 160, 8):
            model.continuous_update(*data.batch(range(i, i + 8)))
        return (weights(model) - before).abs().max().item()

    np.random.seed(0)  # what the published memory draws with: 1.1e-4 to 2.1e-4 from seed to seed
    assert moved(classifier(legacy_compat=True)) < 2.5e-4
    assert moved(classifier()) > 1e-3


def test_rate_can_be_changed_at_any_time():
    model, batch = classifier(), LogDataset(8, seed=1).batch(range(8))
    model.continuous_update(*batch)
    steps = []
    for rate in (1e-4, 0.0, 1e-3):
        model.adaptation_rate = rate
        before = weights(model).clone()
        model.continuous_update(*batch)
        steps.append((weights(model) - before).abs().max().item())
    assert steps[1] == 0.0
    assert steps[2] > 3 * steps[0] > 0
    published, many = classifier(legacy_compat=True), LogDataset(40, seed=1).batch(range(40))
    published.continuous_update(*many)
    published.adaptation_rate = 0.0
    before = weights(published).clone()
    published.continuous_update(*many)
    assert not torch.equal(weights(published), before)  # the control: the rate it was built with


def test_online_learning_clips_at_a_norm_of_its_own():
    """Audit row G3. After the first step AdamW's first moment is a tenth of the gradient that it was given."""

    def given(**gradient):
        model = classifier(config=load(gradient=gradient))
        outcome = model.continuous_update(*LogDataset(8, seed=1).batch(range(8)))
        (state,) = model._continual.state_dict()["optimizer"]["adamw"]["state"].values()
        return outcome["grad_norm"], 10 * state["exp_avg"].norm().item()

    norm, reached = given(online_max_norm=1e3)
    assert reached == pytest.approx(norm, rel=1e-4)  # the control: wide open, the gradient arrives whole
    assert norm > 0.1
    assert given(online_max_norm=0.01) == (pytest.approx(norm), pytest.approx(0.01, rel=1e-4))
    assert given(clip={"kind": "norm", "max_norm": 1e-3}, online_max_norm=0.02)[1] == pytest.approx(0.02, rel=1e-4)  # not the training's


def test_every_message_has_its_own_score_and_its_own_storage(trained):
    model = copy.deepcopy(trained)
    tokens, labels = LogDataset(24, seed=3).batch(range(24))
    model.continuous_update(tokens, labels)
    with torch.no_grad():
        p = model.predict_logits(tokens)  # of the updated weights; scores were taken just before the step
    assert len(set(model.memory.scores)) > 12
    assert all(0.0 <= s <= 1.0 for s in model.memory.scores)
    for (kept, label), score in zip(model.memory.buffer, model.memory.scores, strict=True):
        row = next(i for i in range(24) if torch.equal(tokens[i], kept))
        assert label == labels[row]
        assert score == pytest.approx(1 - p[row].softmax(-1)[label].item(), abs=0.1)
        assert kept.untyped_storage().nbytes() == 400
    legacy = classifier(legacy_compat=True)
    legacy.continuous_update(tokens, labels)
    assert len(set(legacy.memory.scores)) == 1
    assert legacy.memory.buffer[0][0].untyped_storage().nbytes() == 24 * 400


def test_unsure_items_of_a_new_class_stay():
    def remembered(model):
        tokens, labels = LogDataset(2000, seed=4).batch(range(2000))
        old, new = labels != 3, labels == 3
        for i in range(0, 200, 20):
            model.continuous_update(tokens[old][i : i + 20], labels[old][i : i + 20])
        torch.nn.init.constant_(model.classifier[-1].bias[3], -20.0)  # the new class is what the model least expects
        model.continuous_update(tokens[new][:30], labels[new][:30])
        model.continuous_update(tokens[old][200:260], labels[old][200:260])
        return sum(int(label) == 3 for _, label in model.memory.buffer)

    assert remembered(classifier(memory_size=80)) == 20  # a quarter of the memory


def test_replayed_messages_get_their_new_scores(trained):
    model = copy.deepcopy(trained)
    tokens, labels = LogDataset(16, seed=5).batch(range(16))
    model.continuous_update(tokens, labels)
    for slot in range(16):
        model.memory.update_score(slot, 0.5)
    model.continuous_update(*LogDataset(4, seed=6).batch(range(4)))
    assert sum(score == 0.5 for score in model.memory.scores[:16]) == 0  # all sixteen were replayed


def test_messages_of_several_lengths_are_replayed_together():
    model = classifier()
    for length in (10, 50, 3, 0):
        data = LogDataset(6, seq_len=length, seed=length)
        outcome = model.continuous_update(*data.batch(range(6)))
        assert outcome["skipped"] == 0.0
    assert len(model.memory) == 24


def test_empty_batch_changes_nothing():
    model = classifier()
    before = weights(model).clone()
    outcome = model.continuous_update(torch.zeros(0, 50, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert outcome["skipped"] == 1.0
    assert torch.equal(weights(model), before)
    assert len(model.memory) == 0


@pytest.mark.parametrize("mode", [True, False])
def test_mode_is_left_as_it_was(mode):
    model = classifier().train(mode)
    model.continuous_update(*LogDataset(4, seed=0).batch(range(4)))
    assert model.training == mode


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_adapts_and_survives_a_cast_in_between(dtype):
    model = classifier()
    data = LogDataset(40, seed=0)
    model.continuous_update(*data.batch(range(20)))
    model.to(dtype)
    before = weights(model).clone()
    model.adaptation_rate = 1e-2
    outcome = model.continuous_update(*data.batch(range(20, 40)))
    assert outcome["skipped"] == 0.0
    assert not torch.equal(weights(model), before)
    assert torch.isfinite(weights(model)).all()


def test_weights_that_are_not_finite_poison_neither_memory_nor_later_updates(trained):
    model = copy.deepcopy(trained)
    tokens, labels = LogDataset(8, seed=0).batch(range(8))
    good = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.classifier[-1].bias[0] = float("nan")
    assert model.continuous_update(tokens, labels)["skipped"] == 1.0
    assert len(model.memory) == 0
    model.load_state_dict(good)
    assert model.continuous_update(tokens, labels)["skipped"] == 0.0
    assert len(model.memory) == 8


def test_adapts_to_the_drift_without_forgetting(trained):
    tokens, labels = LogDataset(8000, drift_point=0, seed=99).batch(range(8000))
    model = copy.deepcopy(trained)
    torch.manual_seed(0)
    continuous_learning_phase(model, LogDataset(1200, drift_point=300, seed=7), batch_size=4)
    common, old = labels < 2, labels >= 2
    assert accuracy(model, tokens[common], labels[common]) > accuracy(trained, tokens[common], labels[common]) + 0.005
    assert accuracy(model, tokens[old], labels[old]) > accuracy(trained, tokens[old], labels[old]) - 0.01


def test_running_accuracy_is_over_what_there_was(trained):
    data = LogDataset(10, seed=8)
    found = continuous_learning_phase(copy.deepcopy(trained), data, n_samples=10)
    assert isinstance(found, list)
    assert len(found) == 10
    assert found[-1] > 0.7
    published = continuous_learning_phase(classifier(legacy_compat=True), data, num_samples=10, legacy_compat=True)
    assert max(published) <= 0.1  # ten right predictions, divided by a hundred
    right = [float(p) for p in (trained.predict(data.batch(range(10))[0]) == data.batch(range(10))[1])]
    assert found[0] == right[0]
    longer = continuous_learning_phase(copy.deepcopy(trained), LogDataset(150, seed=9), batch_size=50)
    assert all(0.0 <= a <= 1.0 for a in longer)
    assert longer[-1] * 100 == pytest.approx(round(longer[-1] * 100))
