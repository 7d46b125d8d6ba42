"""The linear runner on features whose right answer is known, and against a probe written out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.probing import holdout, resume
from evalkit.probing.heads import first_weights
from evalkit.runners import linear
from tests.runners.fakes import FakeJob, features

QUICK = {"epochs": 8, "batch_size": 32, "rates": (0.01, 1.0, 8.0)}
FIXED = {"epochs": 5, "batch_size": 16, "rates": (2.0,), "select": "fixed", "seeds": (0, 1)}


@pytest.fixture(autouse=True)
def saved_after_every_epoch(monkeypatch):
    monkeypatch.setattr(resume, "SAVED_EVERY", 0.0)


def noisy(count, seed, noise=1.0, classes=5):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return features(labels, torch.eye(classes)[labels] + noise * torch.randn(count, classes, generator=rng))


def by_name(job):
    return {score.name: score for score in linear.run(job)}


def test_perfect_features_score_exactly_one():
    job = FakeJob(linear.Config(**QUICK), features(torch.arange(200) % 6), features(torch.arange(30) % 6))
    scores = by_name(job)
    assert list(scores) == ["top1", "top1@seed=0", "top1@seed=1", "top1@seed=2", "best-on-test"]
    assert all(s.value == s.high == 1.0 and s.n == 30 for s in scores.values())
    assert {(s.interval, round(s.low, 3)) for s in scores.values()} == {("clopper-pearson", 0.884)}
    assert [s.note for s in scores.values()] == ["", "seed", "seed", "seed", "best-on-test"]


def test_random_labels_score_chance():
    rng = torch.Generator().manual_seed(0)
    train, test = (
        features(torch.randint(4, (n,), generator=rng), torch.randn(n, 8, generator=rng)) for n in (600, 900)
    )
    scores = by_name(FakeJob(linear.Config(**QUICK), train, test))
    assert scores["top1"].low - 0.01 <= 0.25 <= scores["top1"].high + 0.01
    assert scores["best-on-test"].value >= scores["top1"].value


def test_headline_is_the_mean_over_seeds():
    job = FakeJob(linear.Config(**QUICK), noisy(150, 0), noisy(90, 1))
    scores = by_name(job)
    seeds = [scores[f"top1@seed={s}"] for s in (0, 1, 2)]
    assert scores["top1"].value == pytest.approx(sum(s.value for s in seeds) / 3)
    assert (
        torch.tensor(scores["top1"].outcomes).mul(3).sub(torch.tensor(sum(s.outcomes for s in seeds))).abs().max()
        < 1e-5
    )
    assert job.facts["seed_std"] == pytest.approx(torch.tensor([s.value for s in seeds]).std().item(), abs=1e-6)


def test_fixed_rate_equals_a_probe_written_out():
    """All of the training split, the last epoch, base rate x batch / 256, the order of the job's generator."""
    train, test = noisy(50, 0), noisy(40, 1)
    job = FakeJob(linear.Config(**FIXED), train, test)
    scores = by_name(job)
    module = torch.nn.Linear(5, 5)
    module.weight.data.copy_(first_weights(5, 5, job.rng("linear", "first", 1, "cls")).T)
    module.bias.data.zero_()
    sgd = torch.optim.SGD(module.parameters(), lr=2.0 * 16 / 256, momentum=0.9)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5)
    for epoch in range(5):
        order = torch.randperm(50, generator=job.rng("linear", "order", 1, epoch))
        for start in range(0, 50, 16):
            rows = order[start : start + 16]
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(module(train.rows["cls"][rows]), train.labels[rows]).backward()
            sgd.step()
        annealing.step()
    assert torch.allclose(job.kept["head"]["1/weight"], module.weight, atol=1e-5)
    assert torch.allclose(job.kept["head"]["1/bias"], module.bias, atol=1e-5)
    right = module(test.rows["cls"]).argmax(1) == test.labels
    assert scores["top1@seed=1"].outcomes.tolist() == right.float().tolist()
    assert "best-on-test" not in scores


def test_sweep_chooses_the_pooling_that_knows():
    labels, rng = torch.arange(120) % 4, torch.Generator().manual_seed(0)
    train = features(labels, cls=torch.randn(120, 6, generator=rng))
    test = features(labels, cls=torch.randn(120, 6, generator=rng))
    job = FakeJob(linear.Config(poolings=("cls", "mean"), seeds=(4,), **QUICK), train, test)
    assert by_name(job)["top1"].value == 1.0
    chosen, how = job.facts["chosen"], job.facts["choices"]["top1"]
    assert chosen["pooling"] == how["input"] == "mean"
    assert chosen["rate"] == pytest.approx(chosen["base_rate"] * 32 / 256)
    assert (how["held_out"], how["folds"], how["candidates"], how["values"]) == (120, 5, 6, 3)
    assert job.kept["head"]["4/weight"].shape == (4, 16)


def test_the_test_split_chooses_nothing():
    train, test = noisy(200, 0), noisy(80, 1)
    other = noisy(80, 2, noise=3.0)
    jobs = [FakeJob(linear.Config(**QUICK), train, split) for split in (test, other)]
    for job in jobs:
        list(linear.run(job))
    assert jobs[0].facts == jobs[1].facts | {"seed_std": jobs[0].facts["seed_std"]}
    assert torch.equal(jobs[0].kept["head"]["0/weight"], jobs[1].kept["head"]["0/weight"])


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_held_out_images_do_not_train_and_folds_leave_none_out(mode, monkeypatch):
    """One image of two crops holds the only examples of a class: where it is held out, that class cannot be learnt."""
    labels = torch.cat([torch.arange(38) % 2, torch.tensor([2, 2])])
    groups = torch.cat([torch.arange(38), torch.tensor([99, 99])])
    train, test = features(labels, groups=groups), features(torch.tensor([2]))
    config = linear.Config(mode=mode, size=8, held_out=0.2, seeds=(0,), epochs=20, batch_size=16, rates=(8.0, 16.0))
    folds = FakeJob(config, train, test)
    assert by_name(folds)["top1"].value == 1.0
    assert folds.facts["choices"]["top1"]["score"] == pytest.approx(38 / 40)
    monkeypatch.setattr(holdout, "FEW", 1)
    jobs = [FakeJob(config, train, test, seed=seed) for seed in range(12)]
    out = [bool(holdout.hold_out(groups, 0.2, job.rng("linear", "held-out"))[38]) for job in jobs]
    assert any(out) and not all(out)
    assert [by_name(job)["top1"].value for job in jobs] == [1.0 - alone for alone in out]


def test_diverged_heads_are_set_aside_and_told():
    train, test = noisy(60, 0), noisy(30, 1)
    for split in (train, test):
        split.rows["cls"] = split.rows["cls"] * 1e6
    job = FakeJob(linear.Config(rates=(1e-9, 1e34), epochs=3, batch_size=16, seeds=(0,)), train, test)
    assert by_name(job)["top1"].n == 30
    assert job.facts["chosen"]["base_rate"] == 1e-9
    assert job.facts["chosen"]["diverged"] == {"cls": [1e34]}
    with pytest.raises(ProtocolError, match="diverged"):
        list(linear.run(FakeJob(linear.Config(rates=(1e34,), epochs=3, batch_size=16), train, test)))


@pytest.mark.parametrize(("blocks", "width"), [(1, 10), (3, 20)])
def test_last_blocks(blocks, width):
    job = FakeJob(
        linear.Config(poolings=("cls+mean",), last_blocks=blocks, seeds=(0,), **QUICK),
        features(torch.arange(40) % 4, cls=torch.randn(40, 5), mean=torch.randn(40, 5)),
        features(torch.arange(8) % 4, cls=torch.randn(8, 5), mean=torch.randn(8, 5)),
    )
    list(linear.run(job))
    assert job.asked[0] == ("test", tuple(range(-blocks, 0)), True, ("cls", "mean"))
    assert job.kept["head"]["0/weight"].shape == (4, width)


def test_fewer_images_than_a_batch_and_absent_classes():
    job = FakeJob(linear.Config(**QUICK | {"batch_size": 1024}), features([0, 7, 0, 7]), features([7, 3]))
    scores = by_name(job)
    assert job.facts["chosen"]["batch"] == 4
    assert scores["top1"].outcomes[1] == 0.0
    assert job.kept["head"]["0/weight"].shape[0] == 8


def online(**change):
    return linear.Config(mode="online", size=9, **FIXED | change)


def test_online_learns_with_one_encoder_pass_per_batch():
    job = FakeJob(online(epochs=10), features(torch.arange(40) % 4), features(torch.arange(12) % 4))
    scores = by_name(job)
    assert list(scores) == ["top1", "top1@seed=0", "top1@seed=1"]
    assert scores["top1"].value == 1.0
    assert job.encoder.calls == 10 * 3
    assert job.augmentation.size == 8
    assert job.facts["crop_size"] == {"asked": 9, "used": 8, "patch": 4}
    assert [role for role, *_ in job.asked] == ["test"]
    assert not torch.equal(job.kept["head"]["0/weight"], job.kept["head"]["1/weight"])


@pytest.mark.parametrize("batches", [1, 7, 12])
def test_online_goes_on_where_it_was_killed(batches):
    train, test = noisy(40, 0), noisy(20, 1)
    whole = FakeJob(online(), train, test)
    list(linear.run(whole))
    killed = FakeJob(online(), train, test, stop_after=batches)
    with pytest.raises(ProtocolError, match="ended after"):
        list(linear.run(killed))
    resumed = FakeJob(online(), train, test, checkpoint=killed.checkpoint)
    list(linear.run(resumed))
    assert resumed.encoder.calls == 15 - batches // 3 * 3
    assert torch.equal(resumed.kept["head"]["1/weight"], whole.kept["head"]["1/weight"])


def test_online_and_cached_agree_where_the_stream_augments_nothing():
    """Same first weights, same number of steps; only the order of images differs."""
    train, test = features(torch.arange(64) % 4), features(torch.arange(64) % 4)
    one, other = (
        FakeJob(linear.Config(mode=m, size=8, **FIXED | {"epochs": 20}), train, test) for m in ("online", "cached")
    )
    list(linear.run(one))
    list(linear.run(other))
    mine, theirs = one.kept["head"]["0/weight"], other.kept["head"]["0/weight"]
    assert (mine - theirs).norm() / theirs.norm() < 0.1


def test_online_diverged():
    train = features(torch.arange(40) % 4, torch.eye(4)[torch.arange(40) % 4] * 1e6)
    with pytest.raises(ProtocolError, match="diverged at base rate"):
        list(linear.run(FakeJob(online(rates=(1e34,)), train, train)))


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_refuses_splits_that_teach_nothing(mode):
    config = linear.Config(mode=mode, size=8, **FIXED)
    good = features(torch.arange(8) % 2)
    for labels, message in (([], "no image"), ([2, 2, 2], "same class")):
        with pytest.raises(ProtocolError, match=message):
            list(linear.run(FakeJob(config, features(torch.tensor(labels, dtype=torch.int64)), good)))
    with pytest.raises(ProtocolError, match="nothing to score"):
        list(linear.run(FakeJob(config, good, features(torch.zeros(0, dtype=torch.int64)))))


def test_one_group_cannot_be_held_out():
    train = features(torch.arange(8) % 2, groups=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ProtocolError, match="come from 1"):
        list(linear.run(FakeJob(linear.Config(**QUICK), train, train)))


def test_names_features_that_are_not_finite():
    broken = features(torch.arange(8) % 2, torch.full((8, 3), float("inf")))
    with pytest.raises(FeatureError, match="not finite"):
        list(linear.run(FakeJob(linear.Config(**QUICK), broken, features([0, 1], torch.ones(2, 3)))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": ()}, "rates"),
        ({"rates": (0.0,)}, "rates"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"last_blocks": 0}, "last_blocks"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"held_out": 1.0}, "held_out"),
        ({"poolings": ()}, "poolings"),
        ({"momentum": 1.0}, "momentum"),
        ({"select": "fixed"}, "fixed"),
        ({"last_blocks": (1, 1)}, "last_blocks"),
        ({"last_blocks": ()}, "last_blocks"),
        ({"select": "fixed", "rates": (0.1,), "last_blocks": (1, 4)}, "fixed"),
        ({"min_rate": 1e-5}, "min_rate"),
        ({"min_rate": -1e-5, "rates": (0.1,)}, "min_rate"),
        ({"warmup": 100}, "warmup"),
        ({"norm_images": -1}, "norm_images"),
        ({"size": 0}, "size"),
    ],
)
def test_says_which_option_cannot_be(change, message):
    with pytest.raises(UsageError, match=message):
        linear.Config(**change)


def sweep(**change):
    given = {"epochs": 4, "batch_size": 16, "rates": (0.05, 2.0, 8.0), "seeds": (0, 1), "held_out": 0.2}
    return linear.Config(mode="online", size=8, **given | change)


def shared(count, seed, classes=5):
    """Noisy features, four crops of each image."""
    alone = noisy(count, seed, 0.7, classes)
    return features(alone.labels, alone.rows["cls"], groups=torch.arange(count) // 4)


def modules(job, seed, inputs):
    """One plain layer with its own optimiser per input and rate, from the first weights of the runner."""
    found = {}
    for name, width in inputs.items():
        for index, rate in enumerate(job.config.rates):
            layer = torch.nn.Linear(width, 5)
            layer.weight.data.copy_(first_weights(width, 5, job.rng("linear", "first", seed, name)).T)
            layer.bias.data.zero_()
            found[name, index] = layer, torch.optim.SGD(layer.parameters(), lr=rate * 16 / 256, momentum=0.9)
    return found


def trained_by_hand(job, who, out, inputs, rows_of):
    """Every batch holds 16 of the images that are not held out, in the order of the stream."""
    probes = modules(job, who, inputs)
    for epoch in range(4):
        order = torch.randperm(len(job.train), generator=job.rng("stream", epoch))
        order = order[~out[order]]
        for start in range(0, len(order), 16):
            rows = order[start : start + 16]
            for (name, index), (layer, sgd) in probes.items():
                factor = 0.5 * (1 + math.cos(math.pi * epoch / 4))
                sgd.param_groups[0]["lr"] = job.config.rates[index] * 16 / 256 * factor
                sgd.zero_grad()
                F.cross_entropy(layer(rows_of(name, job.train)[rows]), job.train.labels[rows]).backward()
                sgd.step()
    return {key: layer for key, (layer, _) in probes.items()}


def judged(trials, job, rows_of):
    """Of each head, what it gets right and the cross-entropy on the images that its trials left out; seeds that leave
    out the same are averaged."""
    right, lost = {}, {}
    for key in trials[0][1]:
        pairs = [(layers[key](rows_of(key[0], job.train))[out], job.train.labels[out]) for out, layers in trials]
        outcomes = [(logits.argmax(1) == labels).double() for logits, labels in pairs]
        right[key] = torch.cat(outcomes) if len(trials) > 2 else torch.stack(outcomes).mean(0)
        lost[key] = F.cross_entropy(*(torch.cat(of) for of in zip(*pairs, strict=True))).item()
    return right, lost


@pytest.mark.parametrize("few", [1, 1000])
@pytest.mark.parametrize("last_blocks", [1, (1, 2)])
def test_online_sweep_equals_probes_written_out(last_blocks, few, monkeypatch):
    """Images train nothing that they judge, they judge by the deterministic view, and the test split only names the extra."""
    monkeypatch.setattr(holdout, "FEW", few)
    job = FakeJob(sweep(last_blocks=last_blocks), shared(80, 0), shared(60, 1))
    scores = by_name(job)
    assert list(scores) == ["top1", "top1@seed=0", "top1@seed=1", "best-on-test"]
    assert job.encoder.calls == 4 * 5
    inputs = {"cls": 5} if last_blocks == 1 else {"cls@1": 5, "cls@2": 10}

    def rows_of(name, split):
        last, before = split.get("cls", -1), split.get("cls", -2)
        return torch.cat([before, last], dim=1) if name.endswith("@2") else last

    held = holdout.trials(job.train.groups, 0.2, job.rng("linear", "held-out"))
    out = held[0] if few == 1 else torch.zeros(80, dtype=torch.bool)
    reported = {seed: trained_by_hand(job, seed, out, inputs, rows_of) for seed in (0, 1)}
    folds = [(fold, trained_by_hand(job, f"fold {n}", fold, inputs, rows_of)) for n, fold in enumerate(held)]
    right, lost = judged([(out, of) for of in reported.values()] if few == 1 else folds, job, rows_of)
    best = max(right.values(), key=lambda row: row.mean())
    near = [key for key in right if right[key].mean() >= best.mean() - best.std(correction=0) / len(best) ** 0.5]
    chosen = min(lost, key=lost.__getitem__)
    how = job.facts["choices"]["top1"]
    assert (how["chosen"], how["input"]) == (job.config.rates[chosen[1]], chosen[0])
    assert (how["held_out"], how["folds"]) == ((16, 0) if few == 1 else (80, 5))
    assert how["within_one_standard_error"] == len(near)
    assert how["score"] == pytest.approx(float(right[chosen].mean()))
    assert job.facts["chosen"].get("last_blocks") == (None if last_blocks == 1 else int(chosen[0][-1]))
    for seed, probes in reported.items():
        assert torch.allclose(job.kept["head"][f"{seed}/weight"], probes[chosen].weight, atol=1e-4)
        found = (probes[chosen](rows_of(chosen[0], job.test)).argmax(1) == job.test.labels).float()
        assert scores[f"top1@seed={seed}"].outcomes.tolist() == found.tolist()
    assert job.asked[-1][0] == "train"
    assert scores["best-on-test"].value >= scores["top1"].value


def test_a_held_out_image_that_cannot_be_read_judges_nothing():
    """The deterministic view meets a broken image that --skip-broken leaves out: the others keep their folds."""
    splits = shared(80, 0), shared(60, 1)
    whole, broken = FakeJob(sweep(), *splits), FakeJob(sweep(), *splits, unreadable=(7,))
    for job in (whole, broken):
        list(linear.run(job))
    assert [job.facts["choices"]["top1"]["held_out"] for job in (whole, broken)] == [80, 79]


RECIPES = {
    "mae": {"rates": (0.3,), "select": "fixed", "optimiser": "lars", "norm": "batch", "norm_images": 8, "warmup": 2,
            "schedule": "iteration", "drop_last": True, "best": "heads+epochs"},
    "sweep": {"best": "heads+epochs"},
    "dinov2": {"poolings": ("cls", "cls+mean"), "last_blocks": (1, 4), "iterations": 14, "schedule": "iteration",
               "drop_last": True},
    "mugs": {"rates": (2.0,), "select": "fixed", "min_rate": 0.01, "best": "heads+epochs"},
}  # fmt: skip


def of(mode, recipe, **change):
    kinds = RECIPES[recipe] if mode == "online" else RECIPES[recipe] | {"mode": "cached"}
    given = {"mode": "online", "size": 8, "epochs": 4, "batch_size": 16, "rates": (0.05, 2.0, 8.0), "seeds": (0, 1)}
    return linear.Config(**given | kinds | change)


class Killed(Exception):
    pass


class KilledAt:
    """A checkpoint in memory; the run dies right after a state was saved."""

    def __init__(self, saves):
        self.state, self.saves = None, saves

    def load(self):
        return copy.deepcopy(self.state)

    def save(self, state):
        self.state = copy.deepcopy(state)
        self.saves -= 1
        if self.saves == 0:
            raise Killed


def outcome(job):
    return [(s.name, s.value, s.note, s.outcomes.tolist()) for s in linear.run(job)], job.kept["head"], job.facts


@pytest.mark.parametrize("mode", ["online", "cached"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_after_any_epoch_the_result_is_the_same_to_the_bit(mode, recipe):
    splits = shared(80, 0), shared(60, 1)
    splits[0].rows["mean"], splits[1].rows["mean"] = (split.rows["cls"] for split in splits)
    job = FakeJob(of(mode, recipe), *splits)
    whole = outcome(job)
    for saves in range(1, 5 if mode == "online" else 9):  # cached, the seeds and folds come one after the other
        killed = FakeJob(of(mode, recipe), *splits, checkpoint=KilledAt(saves))
        with pytest.raises(Killed):
            list(linear.run(killed))
        resumed = FakeJob(of(mode, recipe), *splits, checkpoint=killed.checkpoint)
        found = outcome(resumed)
        assert found[0] == whole[0]
        assert found[2] == whole[2]
        assert all(torch.equal(found[1][name], tensor) for name, tensor in whole[1].items())
        assert resumed.encoder.calls == max(0, job.encoder.calls - 5 * saves)


def test_behind_a_batch_norm_an_image_is_judged_alone():
    """The outcome of a test image does not depend on the other test images: no statistics of the test batch."""
    train, test = shared(80, 0), shared(60, 1)
    one, single = (FakeJob(of("online", "mae"), train, split) for split in (test, test.at([7])))
    together, alone = by_name(one)["top1"].outcomes, by_name(single)["top1"].outcomes
    assert alone.tolist() == [together[7]]
    assert torch.equal(one.kept["head"]["0/norm_mean"], single.kept["head"]["0/norm_mean"])
    weight, bias = (one.kept["head"][f"0/{name}"] for name in ("weight", "bias"))
    mean, var = (one.kept["head"][f"0/norm_{name}"] for name in ("mean", "var"))
    logits = F.linear((test.rows["cls"] - mean) / (var + 1e-6).sqrt(), weight, bias)
    assert by_name(one)["top1@seed=0"].outcomes.tolist() == (logits.argmax(1) == test.labels).float().tolist()


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_best_epoch_on_test_is_an_extra_and_changes_nothing(mode):
    splits = shared(80, 0), shared(60, 1)
    plain, extra = (
        {s.name: s for s in linear.run(FakeJob(of(mode, "mugs", best=best), *splits))}
        for best in ("heads", "heads+epochs")
    )
    assert set(extra) - set(plain) == {"best-on-test"}
    assert all(extra[name].outcomes.tolist() == score.outcomes.tolist() for name, score in plain.items())
    per_epoch = {
        epochs: by_name(FakeJob(of(mode, "mugs", epochs=epochs, schedule="constant", best="heads"), *splits))
        for epochs in (1, 2, 3, 4)
    }
    found = by_name(FakeJob(of(mode, "mugs", schedule="constant"), *splits))["best-on-test"]
    best = [max(per_epoch[e][f"top1@seed={s}"].value for e in per_epoch) for s in (0, 1)]
    assert found.value == pytest.approx(sum(best) / 2)
    assert found.note == "best-on-test"


def test_a_sweep_of_52_heads():
    rates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    splits = shared(80, 0), shared(60, 1)
    for split in splits:
        split.rows["mean"] = split.rows["cls"]
    job = FakeJob(of("online", "dinov2", rates=rates, seeds=(0,)), *splits)
    by_name(job)
    assert sum(len(rates) for _ in job.config.inputs) == 52
    assert list(job.config.inputs) == ["cls@1", "cls+mean@1", "cls@4", "cls+mean@4"]
    assert job.asked[0] == ("test", (-4, -3, -2, -1), True, ("cls", "mean"))
    steps_per_pass = 76 // 16
    assert job.encoder.calls == -(-14 // steps_per_pass) * 5 - 2  # the last pass ends with the 14th step
