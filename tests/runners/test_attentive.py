"""The attentive probe against its equations written out, and its training against what a killed run goes on with."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.probing.attention_head import AttentiveHead, Learner, factor, strided_batches
from evalkit.runners import attentive
from evalkit.types import Preprocessing, Tokens
from tests.runners.fakes import FakeFeatures, FakeJob, Memory


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def new(dim=6, heads=2, classes=3, seed=0, std=0.5):
    head = AttentiveHead(dim, heads, classes, rng=torch.Generator().manual_seed(seed), query_std=std)
    with torch.no_grad():  # biases and affine weights too, or their part in the result could be wrong unseen
        for name, parameter in head.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * normal(*parameter.shape, seed=len(name)))
    return head.double()


def plain(head, tokens):
    """The equations as they are printed: every token becomes a key and a value; returns logits in train mode."""
    p = dict(head.named_parameters())
    batch, _, dim = tokens.shape
    width = dim // head.heads
    norm = lambda x, name: F.layer_norm(x, (dim,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)
    q = norm(p["query"].expand(batch, 1, dim), "norm_q") @ p["q.weight"].T + p["q_bias"]
    k = norm(tokens, "norm_k") @ p["k.weight"].T
    v = norm(tokens, "norm_v") @ p["v.weight"].T + p["v_bias"]
    q, k, v = (x.view(batch, -1, head.heads, width).transpose(1, 2) for x in (q, k, v))
    attention = (q * width**-0.5 @ k.transpose(2, 3)).softmax(dim=-1)
    out = (attention @ v).transpose(1, 2).reshape(batch, dim)
    out = out @ p["proj.weight"].T + p["proj.bias"]
    out = (out - out.mean(0)) / (out.var(0, correction=0) + 1e-5).sqrt()
    return out @ p["linear.weight"].T + p["linear.bias"]


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 6), st.integers(1, 7), st.sampled_from([(4, 1), (6, 2), (12, 3), (5, 5)]), st.integers(0, 9999))
def test_outputs_and_gradients_are_those_of_the_equations(batch, count, shape, seed):
    dim, heads = shape
    one, other = (new(dim, heads, 3, seed).train() for _ in range(2))
    tokens, labels = normal(batch, count, dim, seed=seed).double(), torch.arange(batch) % 3
    mine, theirs = one(tokens), plain(other, tokens)
    assert torch.allclose(mine, theirs, atol=1e-9)
    F.cross_entropy(mine, labels).backward()
    F.cross_entropy(theirs, labels).backward()
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9), name


def test_it_has_these_parameters_and_no_others():
    found = {name: tuple(p.shape) for name, p in AttentiveHead(8, 2, 5, rng=torch.Generator()).named_parameters()}
    square = dict.fromkeys(("q.weight", "k.weight", "v.weight", "proj.weight"), (8, 8))
    norms = {f"norm_{x}.{kind}": (8,) for x in "qkv" for kind in ("weight", "bias")}
    biases = dict.fromkeys(("query", "q_bias", "v_bias", "proj.bias"), (8,))
    assert found == square | norms | biases | {"linear.weight": (5, 8), "linear.bias": (5,)}


def test_first_weights_have_their_sources_deviations_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    head = AttentiveHead(256, 4, 50, rng=torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    for tensor in (head.query, head.q.weight, head.k.weight, head.v.weight, head.proj.weight):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert float(head.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not any(t.any() for t in (head.q_bias, head.v_bias, head.proj.bias, head.linear.bias))
    assert not AttentiveHead(8, 2, 3, rng=torch.Generator(), query_std=0.0).query.any()


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="5 attention heads"):
        AttentiveHead(8, 5, 2, rng=torch.Generator())


def test_statistics_at_test_running_or_of_each_batch():
    head, pooled = new(), normal(7, 6, seed=3).double()
    head.norm.running_mean += 0.5
    head.norm.running_var *= 2
    running = F.linear((pooled - 0.5) / (2 + 1e-5) ** 0.5, head.linear.weight, head.linear.bias)
    assert torch.allclose(head.train().classify(pooled), running)
    found = head.eval().classify(pooled, [torch.tensor([4, 0, 6]), torch.tensor([1, 2, 3]), torch.tensor([5])])
    for rows in ([4, 0, 6], [1, 2, 3]):
        part = torch.from_numpy(
            (pooled[rows].numpy() - pooled[rows].numpy().mean(0)) / np.sqrt(pooled[rows].numpy().var(0) + 1e-5)
        )
        assert torch.allclose(found[rows], F.linear(part, head.linear.weight, head.linear.bias))
    assert torch.allclose(found[5], head.linear.bias)  # one image alone has no variance: it is its own mean
    assert not torch.allclose(found, running)


def test_norm_batch_normalises_pieces_and_the_first_moves_the_running_statistics():
    head, tokens = new().train(), normal(8, 3, 6, seed=5).double()
    pooled = head.pool(tokens)
    halves = [F.batch_norm(half, None, None, training=True) for half in pooled.split(4)]
    assert torch.allclose(head(tokens, norm_batch=4), head.linear(torch.cat(halves)))
    assert torch.allclose(head.norm.running_mean, 0.1 * pooled[:4].mean(0))
    assert len(head(tokens[:5], norm_batch=4)) == 5  # what is left over joins a piece: no image is normalised alone


@pytest.mark.parametrize(("count", "size", "ranks"), [(10, 4, 1), (10, 2, 3), (3, 5, 8), (1, 1, 1)])
def test_strided_batches_hold_every_row_once(count, size, ranks):
    batches = strided_batches(count, size, ranks)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert all(1 <= len(rows) <= size for rows in batches)


def test_strided_batches_are_those_of_a_distributed_sampler():
    found = [rows.tolist() for rows in strided_batches(10, 2, 3)]
    assert found == [[0, 3], [6, 9], [1, 4], [7], [2, 5], [8]]


def test_rates_are_those_of_the_released_schedule():
    expected = np.concatenate([np.linspace(0, 1, 4), 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))])
    assert np.allclose([factor(step, steps=12, warmup=4) for step in range(12)], expected)
    assert factor(0, steps=5, warmup=0) == 1.0
    plan = attentive.Plan(attentive.Config(epochs=6, warmup_epochs=2, batch_size=40), images=100)
    assert (plan.batch, plan.steps) == (40, 2)
    assert plan.rate(3, 1) == pytest.approx(0.4 * 40 / 8192 * 0.5 * (1 + np.cos(np.pi * 3 / 8)))


def test_a_learner_is_sgd_with_momentum():
    head = new()
    learner, twin = Learner(head, momentum=0.9, weight_decay=0.01), copy.deepcopy(head).train()
    speed = [torch.zeros_like(p) for p in twin.parameters()]
    for step in range(4):
        tokens, labels = normal(5, 3, 6, seed=step).double(), torch.tensor([0, 1, 2, 0, 1])
        rate = 0.1 / (step + 1)
        learner.step(tokens, labels, rate)
        twin.zero_grad()
        F.cross_entropy(plain(twin, tokens), labels).backward()
        with torch.no_grad():
            for p, s in zip(twin.parameters(), speed, strict=True):
                s.mul_(0.9).add_(p.grad + 0.01 * p)
                p -= rate * s
    for mine, theirs in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9)


def test_a_state_goes_on_identically_and_does_not_fit_another_head():
    learner = Learner(new(), momentum=0.9, weight_decay=0.0)
    step = lambda of, seed: of.step(normal(5, 3, 6, seed=seed).double(), torch.tensor([0, 1, 2, 0, 1]), 0.3)
    step(learner, 1)
    state = learner.state()
    step(learner, 2)
    again = Learner(new(seed=9), momentum=0.9, weight_decay=0.0)
    again.restore(state)
    step(again, 2)
    for name, tensor in learner.head.state_dict().items():
        assert torch.equal(tensor, again.head.state_dict()[name]), name
    with pytest.raises(UsageError, match="does not fit"):
        Learner(new(classes=4), momentum=0.9, weight_decay=0.0).restore(state)


def test_a_head_that_diverged_is_told():
    learner = Learner(new(), momentum=0.0, weight_decay=0.0)
    with torch.no_grad():
        learner.head.linear.bias[0] = torch.inf
    with pytest.raises(ProtocolError, match="diverged"):
        learner.predict(normal(3, 6).double())


# ---------------------------------------------------------------- the runner


class GivenTokens(FakeFeatures):
    """Tokens of images: patch 2 says the class, all others and the class token point the same way in every image."""

    def get(self, part, block=-1):
        return self.rows[part]

    def batches(self, part, block=-1, size=1024):
        return iter(torch.split(self.rows[part], size))


def tokens_of(labels, seed, dim=8):
    labels = torch.as_tensor(labels)
    patches = 0.2 * normal(len(labels), 2, 2, dim, seed=seed) + 2 * torch.eye(dim)[-1]
    patches[:, 1, 0] += 2 * (torch.eye(dim)[labels] - torch.eye(dim)[-1])
    rows = {"cls": 0.2 * normal(len(labels), dim, seed=seed + 1) + 2 * torch.eye(dim)[-1], "patches": patches.half()}
    return GivenTokens(rows, labels, torch.arange(len(labels)))


class TokenEncoder:
    """Gives back the tokens whose number is written into the first pixel of an "image"."""

    def __init__(self, given, offers):
        dim = given.rows["cls"].shape[1]
        self.dim, self.given = dim, given
        self.spec = SimpleNamespace(dim=dim, heads=3, patch=4, preprocessing=Preprocessing(size=8), offers=offers)

    def encode(self, images, blocks=(-1,), norm=True):
        rows = images[:, 0, 0, 0].long()
        return (Tokens(self.given.rows["cls"][rows], self.given.rows["patches"][rows]),)


class TokenJob(FakeJob):
    """Its stream writes positions into the images."""

    def stream(self, role, augmentation, **options):
        for batch in super().stream(role, augmentation, **options):
            batch.images[:, 0, 0, 0] = batch.positions.float()
            yield batch


class Copies(Memory):
    """A checkpoint that keeps copies, and dies at the n-th save."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.dies_at, self.saves = dies_at, 0

    def save(self, state):
        self.state = copy.deepcopy(state)
        self.saves += 1
        if self.saves == self.dies_at:
            raise KeyboardInterrupt


def job(offers=frozenset({"cls", "patches"}), train=None, test=None, checkpoint=None, **config):
    train = tokens_of([0, 1, 2, 4] * 10, 0) if train is None else train
    test = tokens_of([0, 1, 2, 4] * 5, 7) if test is None else test
    defaults = {"batch_size": 16, "rate_batch": 16, "rate": 0.1, "epochs": 8, "warmup_epochs": 1, "seeds": (0, 1)}
    given = attentive.Config(**(defaults | {"norm_batch": 0} | config))
    found = TokenJob(given, train, test, encoder=TokenEncoder(train, offers))
    found.checkpoint = checkpoint or Copies()
    return found


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_it_learns_which_patch_tells_the_class(mode):
    given = job(mode=mode, epochs=12)
    scores = {score.name: score for score in attentive.run(given)}
    assert set(scores) == {"top1", "top1@seed=0", "top1@seed=1"}
    assert scores["top1"].value > 0.9
    assert scores["top1"].n == 20
    assert scores["top1"].value == pytest.approx((scores["top1@seed=0"].value + scores["top1@seed=1"].value) / 2)
    assert given.facts["tokens"] == "class token and patches"
    assert given.facts["training"] == {"heads": 2, "batch": 16, "steps_per_epoch": 2, "rate": 0.1}
    assert given.kept["head"]["1/linear.weight"].shape == (5, 8)  # a label that nobody has, 3, has its row


@pytest.mark.parametrize(
    ("mode", "dies_at"), [("cached", 1), ("cached", 8), ("cached", 11), ("online", 1), ("online", 3), ("online", 8)]
)
def test_a_killed_run_goes_on_to_the_bit(mode, dies_at):
    whole = job(mode=mode)
    expected = [s.value for s in attentive.run(whole)]
    killed = job(mode=mode, checkpoint=Copies(dies_at))
    with pytest.raises(KeyboardInterrupt):
        list(attentive.run(killed))
    resumed = job(mode=mode, checkpoint=killed.checkpoint)
    assert [s.value for s in attentive.run(resumed)] == expected
    for name, tensor in whole.kept["head"].items():
        assert torch.equal(tensor, resumed.kept["head"][name]), name


def test_the_incomplete_batch_of_an_epoch_takes_no_step():
    """Forty images in batches of 16: the heads see 32 of each epoch, and the others change nothing."""
    seen = []

    class Watched(TokenEncoder):
        def encode(self, images, blocks=(-1,), norm=True):
            seen.append(len(images))
            return super().encode(images, blocks, norm)

    given = job(mode="online", epochs=3)
    given.encoder = Watched(given.train, given.encoder.spec.offers)
    list(attentive.run(given))
    assert seen == [16, 16] * 3


def test_an_encoder_without_class_token_is_read_from_its_patches():
    given = job(offers=frozenset({"patches"}), mode="cached", epochs=12)
    given.train.rows["cls"] = given.test.rows["cls"] = torch.full((40, 8), torch.nan)
    assert next(iter(attentive.run(given))).value > 0.9
    assert "no class token" in given.facts["tokens"]
    assert all("cls" not in parts for _, _, _, parts in given.asked)


def test_batch_statistics_are_told_and_stand_beside_running_ones():
    given = job(mode="cached", statistics="batch", test_batch=7, test_ranks=2)
    scores = {s.name: s for s in attentive.run(given)}
    assert "top1@running-statistics" in scores
    assert given.facts["test_batches"] == {"images": 7, "ranks": 2, "order": "of the split"}
    plain = {s.name: s.value for s in attentive.run(job(mode="cached"))}
    assert scores["top1@running-statistics"].value == plain["top1"]


def test_with_batch_statistics_the_order_of_the_test_images_matters():
    """The defect of the released code: images sorted by class, in small batches, are all normalised to their class."""
    batch = {"mode": "cached", "epochs": 12, "statistics": "batch", "test_batch": 5}
    mixed = next(iter(attentive.run(job(**batch)))).value
    alone = next(iter(attentive.run(job(test=tokens_of([0] * 5 + [1] * 5 + [2] * 5 + [4] * 5, 7), **batch)))).value
    assert alone < mixed


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [([1, 1], [0, 1], "same class"), ([], [0, 1], "training split"), ([0, 1], [], "test split")],
)
@pytest.mark.parametrize("mode", ["cached", "online"])
def test_splits_that_cannot_be_scored_are_refused(mode, train, test, message):
    empty = lambda labels: tokens_of(torch.tensor(labels, dtype=torch.int64), 0)
    with pytest.raises(ProtocolError, match=message):
        list(attentive.run(job(train=empty(train), test=empty(test), mode=mode)))


def test_tokens_that_are_not_finite_are_refused():
    broken = tokens_of([0, 1] * 8, 0)
    broken.rows["patches"][3, 0, 0, 0] = torch.inf
    with pytest.raises(FeatureError, match="not finite"):
        list(attentive.run(job(train=broken, mode="cached")))


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"momentum": 1.0}, {"epochs": 0}, {"norm_batch": 1}, {"batch_size": 1}, {"seeds": ()},
     {"seeds": (1, 1)}, {"heads": -1}, {"test_ranks": 0}, {"size": 0}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        attentive.Config(**wrong)


def test_warm_up_leaves_epochs_to_fall_in():
    with pytest.raises(UsageError, match="90 epochs of warm-up leave none of 90"):
        attentive.Config(warmup_epochs=90)
