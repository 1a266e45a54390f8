import math
import sys

import pytest
import torch

from latent_drift.models.sampling_tree import SamplingTree


def tree_of(scores):
    tree = SamplingTree()
    for score in scores:
        tree.append(score)
    return tree


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 100, 300])
def test_draws_invert_the_cumulated_probabilities(count):
    scores = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    edges = torch.softmax(scores, 0).cumsum(0)
    tree = tree_of(scores.tolist())
    for i in range(count):
        low = 0.0 if i == 0 else edges[i - 1].item()
        middle = 0.5 * (low + edges[i].item())
        assert tree.draw([middle]) == [i]


def test_changes_leave_no_error_behind():
    tree = tree_of([0.0, 1.0, 2.0])
    tree.set_score(1, 200.0)  # a difference would swallow the others for ever
    tree.set_score(1, 1.0)
    fresh = tree_of([0.0, 1.0, 2.0])
    uniforms = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    assert tree.draw(uniforms) == fresh.draw(uniforms)


@pytest.mark.parametrize("steps", [250.0, 400.0, -250.0, -400.0])
def test_scores_that_wander_off_are_weighed_again(steps):
    tree = tree_of([0.0, 0.0])
    for k in range(1, 20):
        tree.set_score(0, k * steps)
        tree.set_score(1, k * steps + 1.0)
    share = sum(tree.draw([u / 1000 for u in range(1000)])) / 1000
    assert share == pytest.approx(1 / (1 + math.exp(-1.0)), abs=2e-3)
    assert len(tree) == 2


@pytest.mark.parametrize("count", [1, 5, 70, 3000])
def test_what_is_drawn_depends_on_the_scores_alone(count):
    generator = torch.Generator().manual_seed(count)
    uniforms = torch.rand(500, dtype=torch.float64, generator=generator).tolist()
    tree = SamplingTree()
    scores = (3 * torch.randn(count, dtype=torch.float64, generator=generator)).tolist()
    for score in scores:  # weighed against another reference, drawn from between changes few and many
        tree.append(score + 500.0)
        tree.draw(uniforms[:3])
    for leaf in torch.randperm(count, generator=generator).tolist():
        tree.set_score(leaf, scores[leaf])
        if leaf % 100 == 0:
            tree.draw(uniforms[:3])
    assert tree._exponent != 0
    assert tree.draw(uniforms) == tree_of(scores).draw(uniforms)


def test_no_draw_falls_on_a_leaf_without_weight():
    tree = tree_of([-1e5] * 40 + [0.0, 0.1, 0.2] + [-1e5] * 40)
    largest = [math.nextafter(1.0, 0.0)] * 3 + [0.0]
    assert set(tree.draw(largest + [i / 1000 for i in range(1000)])) == {40, 41, 42}


@pytest.mark.parametrize("scores", [[1.7e308, 0.0, -1.7e308], [-1.7e308, -1.7e308, -1.1e308], [5e-324, -1.7e308, -1e300]])
def test_the_largest_finite_scores_are_weighed(scores):
    best = max(range(3), key=scores.__getitem__)
    tree = tree_of(scores)
    assert set(tree.draw([0.0, 0.5, 0.999])) == {best}
    tree.set_score(best, 0.0)
    tree.set_score((best + 1) % 3, -sys.float_info.max)
    tree.set_score((best + 2) % 3, -1e9)
    assert set(tree.draw([0.0, 0.5, 0.999])) == {best}
