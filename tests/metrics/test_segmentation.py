"""mIoU and accuracies against a loop over pixels and scikit-learn's confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from evalkit.errors import ProtocolError
from evalkit.metrics import segmentation as seg


def case(seed, classes=6, absent=(), ignored=0.2, shape=(9, 7)):
    rng = np.random.default_rng(seed)
    names = [c for c in range(classes) if c not in absent]
    truth = rng.choice(names, size=shape)
    predicted = np.where(rng.random(shape) < 0.5, truth, rng.choice(names, size=shape))
    truth = np.where(rng.random(shape) < ignored, -1, truth)
    return torch.from_numpy(predicted), torch.from_numpy(truth)


def by_hand(predicted, truth, classes):
    """mIoU, mAcc, aAcc by sets of pixels."""
    pixels = [(int(p), int(t)) for p, t in zip(predicted.flatten(), truth.flatten(), strict=True) if t >= 0]
    ious, recalls = [], []
    for c in range(classes):
        both = sum(p == c and t == c for p, t in pixels)
        either = sum(p == c or t == c for p, t in pixels)
        true = sum(t == c for _, t in pixels)
        ious += [both / either] if either else []
        recalls += [both / true] if true else []
    return np.mean(ious), np.mean(recalls), np.mean([p == t for p, t in pixels])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("absent", [(), (0, 3)])
def test_against_a_loop_over_pixels(seed, absent):
    predicted, truth = case(seed, absent=absent)
    table = seg.confusion(predicted, truth, 6)
    expected = by_hand(predicted, truth, 6)
    assert (seg.miou(table).item(), seg.macc(table).item(), seg.aacc(table).item()) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_confusion_is_scikit_learns(seed):
    predicted, truth = case(seed)
    kept = truth >= 0
    theirs = confusion_matrix(truth[kept], predicted[kept], labels=range(6))
    assert np.array_equal(seg.confusion(predicted, truth, 6).numpy(), theirs)


def test_another_number_is_ignored_where_it_is_said():
    truth = torch.tensor([255, 0, 1])
    assert seg.confusion(torch.tensor([0, 0, 0]), truth, 2, ignore=255).tolist() == [[1, 0], [1, 0]]


def test_an_image_that_is_all_background_tells_nothing():
    table = seg.confusion(torch.zeros(4, 4, dtype=int), torch.full((4, 4), -1), 3)
    assert table.sum() == 0
    assert torch.isnan(torch.stack([seg.miou(table), seg.macc(table), seg.aacc(table)])).all()


def test_a_class_that_only_the_prediction_has_counts_as_zero_and_no_recall():
    table = seg.confusion(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)
    assert seg.per_class(table)[:2].tolist() == [0.5, 0.0] and seg.per_class(table)[2].isnan()
    assert (seg.miou(table), seg.macc(table), seg.aacc(table)) == (0.25, 0.5, 0.5)


@pytest.mark.parametrize("labels", [(0, 3), (3, 0), (0, -2), (-1, 0)])
def test_labels_outside_are_refused(labels):
    predicted, truth = (torch.tensor([label]) for label in labels)
    with pytest.raises(ProtocolError, match="3 classes are 0 to 2"):
        seg.confusion(predicted, truth, 3)


def test_other_shapes_are_refused():
    with pytest.raises(ProtocolError, match="shape"):
        seg.confusion(torch.zeros(2, 2, dtype=int), torch.zeros(4, dtype=int), 3)


def test_renaming_finds_the_best_names_and_only_that():
    predicted, truth = case(0, ignored=0)
    turned = (predicted + 2) % 6
    table = seg.confusion(turned, truth, 6)
    names = seg.matching(table)
    assert names.tolist() == [(was - 2) % 6 for was in range(6)]
    assert torch.equal(seg.renamed(table, names), seg.confusion(predicted, truth, 6))


def test_renaming_is_the_best_of_all_orders():
    from itertools import permutations

    table = torch.randint(0, 50, (4, 4), generator=torch.Generator().manual_seed(1))
    best = max(
        float(seg.per_class(table[:, list(order)]).sum()) for order in permutations(range(4))
    )  # columns in another order are another naming
    assert float(seg.per_class(seg.renamed(table, seg.matching(table))).sum()) == pytest.approx(best)


def test_scores_of_images_are_the_whole_sets_and_blank_images_are_no_units():
    tables = [seg.confusion(*case(seed), 6) for seed in range(10)] + [torch.zeros(6, 6, dtype=torch.int64)]
    counted = torch.stack([seg.areas(table) for table in tables])
    found = {score.name: score for score in seg.scores(counted, list("uvwxyz"), range(11))}
    whole = torch.stack(tables).sum(0)
    for name, value in {"mIoU": seg.miou(whole), "mAcc": seg.macc(whole), "aAcc": seg.aacc(whole)}.items():
        assert found[name].value == pytest.approx(value.item()) and found[name].n == 10
        assert found[name].low <= found[name].value <= found[name].high
    assert [found[f"IoU/{name}"].value for name in "uvwxyz"] == pytest.approx(seg.per_class(whole).tolist())
    assert found["mIoU"].outcomes.shape == (10, 2, 6)


def test_nothing_that_counts_is_nan_with_no_units():
    (score, *_) = seg.scores(torch.zeros(3, 3, 2, dtype=torch.int64), ["a", "b"])
    assert np.isnan([score.value, score.low, score.high]).all() and score.n == 0


def test_the_interval_is_that_of_images_drawn_one_by_one():
    counted = torch.stack([seg.areas(seg.confusion(*case(seed), 6)) for seed in range(12)])
    score = next(seg.scores(counted, list("uvwxyz")))
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1500):
        right, predicted, true = counted[rng.integers(0, 12, 12)].sum(0).double()
        drawn.append(float((right / (predicted + true - right)).nanmean()))
    assert (score.low, score.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
