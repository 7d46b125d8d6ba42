"""Variance over views against numpy on all views at once, and the views against what they promise."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.runners import variance
from evalkit.types import Batch, Preprocessing, Sample, Tokens
from tests.runners.fakes import FakeJob, Memory, features


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 999))
def test_spread_is_numpys_variance(views, images, tokens, dim, seed):
    vectors = 100 + normal(views, images, tokens, dim, seed=seed)  # far from 0, where naive sums lose their digits
    spread = variance.Spread.zeros(images, tokens, dim, device=torch.device("cpu"))
    for view in range(views):
        spread.add(vectors[view], view)
    expected = vectors.double().numpy().var(axis=0)
    assert np.allclose(spread.variance(views), expected.mean(axis=(1, 2)), rtol=1e-9)
    assert np.allclose(spread.total(views), expected.sum(axis=2).mean(axis=1), rtol=1e-9)


def test_spread_in_any_order_of_rows():
    vectors = normal(3, 5, 4)
    whole, shuffled = (variance.Spread.zeros(5, 4, device=torch.device("cpu")) for _ in range(2))
    for view in range(3):
        whole.add(vectors[view], view)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(view))
        for rows in order.split(2):
            shuffled.add(vectors[view, rows], view, rows)
    assert torch.equal(whole.variance(3), shuffled.variance(3))


@pytest.mark.parametrize(("share", "hidden"), [(0.0, 0), (0.5, 3), (0.34, 2), (1.0, 6)])
def test_noise_replaces_whole_blocks_of_each_image(share, hidden):
    images = torch.zeros(40, 3, 8, 12)
    found = variance.corrupt(images, 4, share, torch.Generator().manual_seed(0))
    blocks = found.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    noisy = (blocks != 0).float().mean(-1)
    assert set(noisy.unique().tolist()) <= {0.0, 1.0}
    assert noisy.sum(1).tolist() == [hidden] * 40
    if 0 < hidden < 6:
        assert len(noisy.unique(dim=0)) > 5  # other blocks in other images
        assert all(0.1 < chance < 0.9 for chance in noisy.mean(0).tolist())
    if hidden:
        values = blocks[noisy.bool()]
        assert float(values.mean()) == pytest.approx(0, abs=0.1)
        assert float(values.std()) == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------- the runner


class Encoder:
    """The class token is the image's mean colour, a patch token the mean of its pixels and a constant."""

    def __init__(self):
        self.calls = 0
        self.spec = SimpleNamespace(dim=3, patch=4, preprocessing=Preprocessing(size=8))

    def encode(self, images, blocks=(-1,), norm=True):
        self.calls += 1
        patches = F.avg_pool2d(images, 4).permute(0, 2, 3, 1) + 5
        return (Tokens(images.mean((2, 3)), patches),)


class Copies(Memory):
    def save(self, state):
        self.state = copy.deepcopy(state)


@dataclasses.dataclass
class Pictures:
    """Two images of each photo."""

    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Sample(str(index), str(index // 2), 0)


class Job(FakeJob):
    """Crop e of image p has the colour (p + 1) x z(e, p); the centre square is grey p."""

    broken = ()

    def dataset(self, role):
        return Pictures(self.test.labels)

    def stream(self, role, augmentation, *, epochs, batch_size, first_epoch=0):
        assert (role, augmentation.flip, augmentation.size) == ("test", 0.0, 8)
        whole = augmentation.scale == (1.0, 1.0)
        for epoch in range(first_epoch, epochs):
            order = [
                p for p in torch.randperm(len(self.test), generator=self.rng(epoch)).tolist() if p not in self.broken
            ]
            for start in range(0, len(order), batch_size):
                rows = torch.tensor(order[start : start + batch_size])
                colours = [torch.full((3,), float(p)) if whole else colour(epoch, p) for p in rows.tolist()]
                images = torch.stack(colours)[:, :, None, None].expand(-1, -1, 8, 8)
                yield Batch(images, self.test.labels[rows], rows, epoch, start + batch_size >= len(order))


def colour(epoch, position):
    return (position + 1) * normal(3, seed=1000 * epoch + position)


def job(images=6, **config):
    given = features(torch.zeros(images, dtype=torch.int64), cls=torch.zeros(images, 3))
    found = Job(variance.Config(**({"views": 5, "size": 8, "batch_size": 4} | config)), given, given, encoder=Encoder())
    found.checkpoint = Copies()
    return found


def scores(given):
    return {score.name: score for score in variance.run(given)}


def test_crops_are_measured_per_image_and_averaged():
    found = scores(job())
    views = torch.stack([torch.stack([colour(e, p) for p in range(6)]) for e in range(5)]).double()
    assert found["cls"].outcomes == pytest.approx(views.var(0, correction=0).mean(1).numpy(), rel=1e-5)
    assert found["cls"].value == pytest.approx(float(views.var(0, correction=0).mean()), rel=1e-5)
    unit = F.normalize(views, dim=-1)
    assert found["cls/unit"].value == pytest.approx(float(1 - unit.mean(0).square().sum(-1).mean()), rel=1e-5)
    assert found["cls"].unit == "variance"
    assert found["cls"].n == 6
    assert found["cls"].groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_masked_views_move_the_tokens_under_noise_only():
    none, all_of_it = scores(job(share=0.0)), scores(job(share=1.0, views=60))
    assert none["patches"].value == none["patches/unit"].value == 0.0
    # the mean of 16 pixels of N(0, 1) noise has variance 1/16
    assert all_of_it["patches"].value == pytest.approx(1 / 16, rel=0.1)
    half = scores(job(share=0.5, views=60, images=2))
    # grey p half of the time and noise around 0 else: (p^2 + 1/16 ... ) by the law of total variance
    assert half["patches"].outcomes == pytest.approx([1 / 32, 1 / 32 + 1 / 4], rel=0.15)


def test_a_token_that_never_moves_has_no_variance():
    class Still(Encoder):
        def encode(self, images, blocks=(-1,), norm=True):
            return (Tokens(torch.ones(len(images), 3), torch.ones(len(images), 2, 2, 3)),)

    given = job()
    given.encoder = Still()
    assert [s.value for s in variance.run(given)] == [0.0] * 4


@pytest.mark.parametrize("dies_at", [1, 7, 9, 14, 19])
def test_a_killed_run_goes_on_to_the_bit(dies_at):
    """Ten batches of crops, then two of five masked views each; the work before the last save is not done again."""
    expected, whole = scores(job()), job()
    list(variance.run(whole))
    killed = job()
    encode = killed.encoder.encode

    def dying(images, **options):
        if killed.encoder.calls == dies_at:
            raise KeyboardInterrupt
        return encode(images, **options)

    killed.encoder.encode = dying
    with pytest.raises(KeyboardInterrupt):
        list(variance.run(killed))
    killed.encoder = Encoder()
    found = scores(killed)
    for name, score in expected.items():
        assert np.array_equal(found[name].outcomes, score.outcomes), name
    if dies_at > 2:
        assert killed.encoder.calls < whole.encoder.calls


def test_images_that_cannot_be_decoded_are_left_out():
    given = job()
    given.broken = (3,)
    found = scores(given)
    assert {s.n for s in found.values()} == {5}
    assert found["cls"].groups.tolist() == [0, 0, 1, 2, 2]


def test_it_needs_images_a_class_token_and_finite_tokens():
    with pytest.raises(ProtocolError, match="no image"):
        scores(job(images=0))
    for wrong, message in ((None, "class token"), (torch.nan, "not finite")):
        given = job()
        cls = wrong if wrong is None else torch.full((4, 3), wrong)
        given.encoder.encode = lambda images, cls=cls, **_: (Tokens(cls, torch.ones(4, 2, 2, 3)),)
        with pytest.raises(FeatureError, match=message):
            scores(given)


@pytest.mark.parametrize(
    "wrong",
    [{"views": 1}, {"batch_size": 0}, {"size": 0}, {"share": 1.1}, {"scale": (0.5, 0.4)}, {"scale": (0.0, 1.0)}],
)
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        variance.Config(**wrong)
