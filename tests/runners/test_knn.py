"""k-NN against obvious implementations and scikit-learn, also on the inputs that crash published scripts."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from evalkit import catalog, runners
from evalkit.errors import FeatureError, NoProjection, ProtocolError, UsageError
from evalkit.metrics import banks
from evalkit.metrics.neighbours import nearest
from evalkit.runners import knn
from tests.runners.fakes import FakeEncoder, FakeJob, features


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_votes(queries, bank, labels, ks, temperature, classes):
    """One query, one k, one neighbour at a time, in Python numbers."""
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (queries, bank)]
    similarity = (unit[0] @ unit[1].T).tolist()
    votes = torch.zeros(len(ks), len(queries), classes)
    for q, row in enumerate(similarity):
        order = sorted(range(len(row)), key=lambda j: (-round(row[j], 6), j))
        for i, k in enumerate(ks):
            for j in order[:k]:
                votes[i, q, labels[j]] += math.exp((row[j] - max(row)) / temperature)
    return votes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_equals_the_slow_vote(queries, rows, dim, seed, ties):
    asked, bank = normal(queries, dim, seed=seed), normal(rows, dim, seed=seed + 1)
    if ties:
        # signs in four dimensions have exact cosines, and hardly any row is alone
        asked, bank = normal(queries, 4, seed=seed).sign(), normal(rows, 4, seed=seed + 1).sign()
    labels = torch.randint(9, (rows,), generator=torch.Generator().manual_seed(seed))
    ks = sorted({1, max(1, rows // 2), rows}, reverse=True)
    found = knn.vote(asked, bank, labels, ks=ks, temperature=0.2, classes=9)
    assert found.shape == (len(ks), queries, 9)
    assert torch.allclose(found, slow_votes(asked, bank, labels, ks, 0.2, 9), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 20, 300])
def test_agrees_with_scikit_learn(k):
    queries, bank = normal(80, 12, seed=0), normal(300, 12, seed=1)
    labels = (bank @ normal(12, 6, seed=2)).argmax(1)
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    expected = model.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())
    votes = knn.vote(queries, bank, labels, ks=[k], temperature=0.07)[0]
    assert np.allclose(votes / votes.sum(1, keepdim=True), expected, atol=1e-4)
    best = knn.predict(queries, bank, labels, ks=[k], temperature=0.07)[0, :, 0]
    assert best.tolist() == expected.argmax(1).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 400), st.integers(1, 12), st.integers(0, 999), st.sampled_from([1, 3, None]))
def test_predict_ranks_the_votes(rows, classes, seed, block):
    queries, bank = normal(6, 4, seed=seed).sign(), normal(rows, 4, seed=seed + 1).sign()
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    ks = (1, 2, rows)[: 3 if rows > 2 else 2]
    options = {"ks": ks, "temperature": 0.5, "classes": classes}
    votes = knn.vote(queries, bank, labels, **options)
    best = votes.sort(dim=2, descending=True, stable=True)
    expected = torch.where(best.values > 0, best.indices, -1)[..., :5]
    assert torch.equal(knn.predict(queries, bank, labels, search=partial(nearest, block=block), **options), expected)


@pytest.mark.parametrize("search", [nearest, banks.flat])
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 400), st.integers(1, 12), st.integers(0, 999), st.integers(1, 90))
def test_predictions_from_tiles_are_the_same(search, rows, classes, seed, tile):
    """Signs: hardly any similarity is alone, so a tie that is settled in another way shows."""
    queries, bank = normal(6, 4, seed=seed).sign(), normal(rows, 4, seed=seed + 1).sign()
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    options = {"ks": (1, 2, rows)[: 3 if rows > 2 else 2], "temperature": 0.5, "classes": classes}
    expected = knn.predict(queries, bank, labels, search=nearest, **options)
    in_tiles = partial(search, tile=tile)
    assert torch.equal(knn.predict(queries, bank, labels, search=in_tiles, **options), expected)


@pytest.mark.parametrize("search", [nearest, banks.flat])
def test_predictions_of_a_large_bank_are_the_same(search):
    queries, bank = normal(300, 24, seed=0), normal(9000, 24, seed=1)
    labels = (bank @ normal(24, 30, seed=2)).argmax(1)
    options = {"ks": (10, 20, 100, 200), "temperature": 0.07}
    expected = knn.predict(queries, bank, labels, search=nearest, **options)
    in_tiles = partial(search, tile=2048)
    assert torch.equal(knn.predict(queries, bank, labels, search=in_tiles, **options), expected)


def test_places_without_a_vote_name_no_class():
    """Three neighbours of two classes: the other places of the five belong to nobody, however low an id is."""
    bank, labels = torch.eye(4)[[0, 0, 0, 1, 2, 3]], torch.tensor([7, 7, 5, 0, 1, 2])
    found = knn.predict(bank[:1], bank, labels, ks=[1, 3, 6], temperature=0.1, classes=9)
    assert found[:, 0].tolist() == [[7, -1, -1, -1, -1], [7, 5, -1, -1, -1], [7, 5, 0, 1, 2]]
    # a vote too small for float32 is one all the same
    assert knn.predict(bank[:1], bank, labels, ks=[6], temperature=1e-3)[0, 0].tolist() == [7, 5, 0, 1, 2]


def test_top5_counts_voted_classes_alone():
    """One neighbour votes: class 0 is not found by standing first among the classes without a vote."""
    train = features(torch.arange(60) % 6, torch.eye(6).repeat(10, 1))
    test = features(torch.zeros(6, dtype=torch.int64), torch.eye(6))
    scores = by_name(FakeJob(knn.Config(ks=(5, 10)), train, test))
    for name in ("top1@k=5", "top5@k=5", "top5@k=10"):
        assert scores[name].outcomes.tolist() == [1, 0, 0, 0, 0, 0]


def test_ks_in_any_order():
    queries, bank, labels = normal(3, 4, seed=0), normal(30, 4, seed=1), torch.arange(30) % 3
    up = knn.vote(queries, bank, labels, ks=[1, 5, 20], temperature=0.1)
    down = knn.vote(queries, bank, labels, ks=[20, 5, 1], temperature=0.1)
    assert torch.equal(up, down.flip(0))


def test_a_tie_at_rank_k_goes_to_the_earlier_row():
    bank = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    for k in range(1, 6):
        votes = knn.vote(bank[:1], bank, torch.arange(6), ks=[k], temperature=0.07)
        assert votes[0, 0].tolist() == [1.0] * k + [0.0] * (6 - k)
    assert knn.predict(bank[:1], bank, torch.tensor([5, 3, 4, 3, 1, 5]), ks=[2], temperature=0.1)[
        0, 0, :2
    ].tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_temperature_does_not_overflow_in_half_precision(dtype):
    bank = torch.eye(4, dtype=dtype)
    votes = knn.vote(bank, bank, torch.arange(4), ks=[4], temperature=1e-3)
    assert torch.equal(votes[0], torch.eye(4))


def test_gaps_in_labels_and_absent_classes():
    bank = torch.eye(3)
    assert knn.vote(bank, bank, torch.tensor([7, 0, 1200]), ks=[1], temperature=0.07).shape == (1, 3, 1201)
    assert knn.predict(bank, bank, torch.tensor([7, 0, 1200]), ks=[1], temperature=0.07)[0, :, 0].tolist() == [
        7,
        0,
        1200,
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ks": [11]}, ProtocolError, r"k = 11 .* N = 10"),
        ({"ks": []}, UsageError, "ks"),
        ({"ks": [0]}, UsageError, "ks"),
        ({"ks": [2, 2]}, UsageError, "ks"),
        ({"temperature": 0.0}, UsageError, "temperature"),
        ({"temperature": float("nan")}, UsageError, "temperature"),
        ({"queries": torch.ones(0, 3)}, ProtocolError, "0 queries"),
        ({"bank": torch.ones(0, 3), "labels": torch.zeros(0, dtype=torch.int64)}, ProtocolError, "bank of 0"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, ProtocolError, "shape"),
        ({"labels": torch.full((10,), -1)}, ProtocolError, "label -1"),
        ({"labels": torch.full((10,), 4), "classes": 4}, ProtocolError, "only 4 classes"),
        ({"queries": torch.full((2, 3), float("nan"))}, FeatureError, "queries are not finite"),
        ({"queries": torch.ones(2, 4)}, FeatureError, "dimensions"),
    ],
)
def test_says_what_is_wrong(change, error, message):
    given = {"queries": torch.ones(2, 3), "bank": torch.ones(10, 3), "labels": torch.arange(10)}
    given |= {"ks": [2], "temperature": 0.07} | change
    for function in (knn.vote, knn.predict):
        with pytest.raises(error, match=message):
            function(given["queries"], given["bank"], given["labels"], **{k: given[k] for k in given if k in OPTIONS})


OPTIONS = ("ks", "temperature", "classes")


def by_name(job):
    return {score.name: score for score in knn.run(job)}


def test_perfect_features_score_exactly_one():
    job = FakeJob(knn.Config(ks=(1, 5, 10)), features(torch.arange(200) % 8), features(torch.arange(40) % 8))
    scores = by_name(job)
    assert list(scores) == ["top1@k=1", "top1@k=5", "top5@k=5", "top1@k=10", "top5@k=10"]
    assert all(s.value == s.high == 1.0 and s.n == 40 for s in scores.values())
    assert {(s.interval, round(s.low, 3)) for s in scores.values()} == {("clopper-pearson", 0.912)}  # 1 - 3.7 / 40


def test_random_labels_score_chance():
    rng = torch.Generator().manual_seed(0)
    train, test = (
        features(torch.randint(10, (n,), generator=rng), torch.randn(n, 6, generator=rng)) for n in (2000, 1500)
    )
    scores = by_name(FakeJob(knn.Config(ks=(1, 20)), train, test))
    for name, chance in (("top1@k=1", 0.1), ("top1@k=20", 0.1), ("top5@k=20", 0.5)):
        assert scores[name].low - 0.01 <= chance <= scores[name].high + 0.01
        assert scores[name].high - scores[name].low > 0.02


def test_every_pooling_from_one_request():
    labels = torch.arange(60) % 6
    train, test = features(labels, mean=torch.ones(60, 3)), features(labels[:12], mean=torch.ones(12, 3))
    job = FakeJob(knn.Config(ks=(5,), pooling=("cls", "mean", "cls+mean")), train, test)
    scores = by_name(job)
    assert [n for n in scores if "top1" in n] == ["top1@k=5", "mean/top1@k=5", "cls+mean/top1@k=5"]
    assert scores["top1@k=5"].value == scores["cls+mean/top1@k=5"].value == 1.0
    # all equal: the five first rows vote, one for each of the classes 0 to 4, and the lowest class wins
    assert scores["mean/top1@k=5"].value == pytest.approx(1 / 6)
    assert scores["mean/top5@k=5"].value == pytest.approx(5 / 6)
    assert job.asked == [("train", (-1,), True, ("cls", "mean")), ("test", (-1,), True, ("cls", "mean"))]


def test_ks_beyond_the_bank_are_left_out_and_told():
    job = FakeJob(knn.Config(ks=(2, 10, 20)), features(torch.arange(10) % 2), features(torch.tensor([1])))
    scores = by_name(job)
    assert list(scores) == ["top1@k=2", "top1@k=10"]
    assert job.facts["ks_left_out"]["ks"] == [20]
    assert math.isnan(scores["top1@k=2"].low)
    with pytest.raises(ProtocolError, match="N = 10"):
        list(knn.run(FakeJob(knn.Config(ks=(11, 12)), job.train, job.test)))


def test_a_test_class_without_training_images_is_always_wrong():
    job = FakeJob(knn.Config(ks=(1,)), features(torch.arange(10) % 2), features(torch.tensor([0, 9])))
    assert by_name(job)["top1@k=1"].outcomes.tolist() == [1.0, 0.0]


def test_intervals_resample_whole_images():
    rng = torch.Generator().manual_seed(0)
    labels, rows = torch.arange(100) % 4, torch.randn(100, 3, generator=rng)
    train = features(labels, rows)
    alone = features(labels.repeat(3), rows.roll(1, 0).repeat(3, 1))
    shared = features(labels.repeat(3), rows.roll(1, 0).repeat(3, 1), groups=torch.arange(100).repeat(3))
    widths = [s.high - s.low for t in (alone, shared) for s in knn.run(FakeJob(knn.Config(ks=(5,)), train, t))]
    assert widths[1] > 1.4 * widths[0]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [([], [0, 1], "train has 0"), ([0, 1], [], "test has 0"), ([3, 3, 3], [3], "same class")],
)
def test_refuses_splits_that_cannot_be_scored(train, test, message):
    made = [features(torch.tensor(labels, dtype=torch.int64)) for labels in (train, test)]
    with pytest.raises(ProtocolError, match=message):
        list(knn.run(FakeJob(knn.Config(ks=(1,)), *made)))


def test_names_features_that_are_not_finite():
    broken = features(torch.arange(4), torch.full((4, 3), float("nan")))
    with pytest.raises(FeatureError, match="not finite"):
        list(knn.run(FakeJob(knn.Config(ks=(1,)), broken, broken)))


def obvious_predictions(queries, bank, labels, k, temperature):
    """numpy, one query at a time: sort, weigh, add up; equal votes to the lowest class."""
    unit = [
        rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True) for rows in (queries, bank)
    ]
    found = []
    for query in unit[0]:
        cosine = unit[1] @ query
        votes = {}
        for row in sorted(range(len(cosine)), key=lambda j: (-round(cosine[j], 9), j))[:k]:
            votes[int(labels[row])] = votes.get(int(labels[row]), 0.0) + math.exp(cosine[row] / temperature)
        found.append(min(votes, key=lambda label: (-round(votes[label], 9), label)))
    return found


@pytest.mark.parametrize("temperature", [0.04, 0.05, 0.07])
def test_the_runner_is_right_for_every_pooling_and_temperature(temperature):
    """The concatenation is normalised as a whole: a long class token outweighs a short patch mean."""
    rng = torch.Generator().manual_seed(1)
    made = []
    for n in (90, 40):
        labels = torch.randint(7, (n,), generator=rng) * 2  # gaps
        cls, mean = (torch.randn(n, 5, generator=rng) + scale * labels[:, None].cos() for scale in (1, 2))
        made.append(features(labels, 3 * cls, mean))
    train, test = made
    config = knn.Config(ks=(3, 20), temperature=temperature, pooling=("cls", "mean", "cls+mean"))
    scores = by_name(FakeJob(config, train, test))
    rows = {p: [s.rows[p] for s in made] for p in ("cls", "mean")}
    rows["cls+mean"] = [torch.cat([s.rows["cls"], s.rows["mean"]], 1) for s in made]
    right = {}
    for pooling, (bank, queries) in rows.items():
        for k in (3, 20):
            guess = obvious_predictions(queries, bank, train.labels, k, temperature)
            right[pooling, k] = [float(a == b) for a, b in zip(guess, test.labels.tolist(), strict=True)]
            name = f"top1@k={k}" if pooling == "cls" else f"{pooling}/top1@k={k}"
            assert scores[name].outcomes.tolist() == right[pooling, k]
            assert scores[name].value == pytest.approx(sum(right[pooling, k]) / 40)
    assert right["cls", 20] != right["cls+mean", 20] != right["mean", 20]


class WithHead(FakeEncoder):
    """The head reads the first two numbers of the class token alone; its bottleneck the last two."""

    def project(self, tokens, at="output"):
        return tokens.cls[:, :2] if at == "output" else tokens.cls[:, -2:]


def test_the_pretraining_heads_output_is_a_pooling():
    labels = torch.arange(60) % 6
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    angle = labels * math.pi / 3
    rows = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), 5 * noise], 1)
    train, test = features(labels, rows), features(labels[3:20].flip(0), rows.roll(6, 0)[3:20].flip(0))
    config = knn.Config(ks=(5,), pooling=("cls", "projection", "bottleneck"))
    job = FakeJob(config, train, test, encoder=WithHead(4))
    scores = by_name(job)
    assert scores["projection/top1@k=5"].value == 1.0
    assert scores["top1@k=5"].value < 1 and scores["bottleneck/top1@k=5"].value < 1
    assert job.asked == [("train", (-1,), True, ("cls",)), ("test", (-1,), True, ("cls",))]


def test_an_encoder_without_a_head_is_told_so():
    class Headless(FakeEncoder):
        def project(self, tokens, at="output"):
            raise NoProjection("no head")

    made = features(torch.arange(10) % 2)
    with pytest.raises(NoProjection):
        list(knn.run(FakeJob(knn.Config(ks=(1,), pooling=("projection",)), made, made, encoder=Headless(16))))


@pytest.mark.parametrize("search", ["faiss", "faiss-ivf"])
def test_faiss_scores_the_same_and_is_told(search):
    rng = torch.Generator().manual_seed(0)
    train, test = (
        features(
            labels, torch.randn(n, 6, generator=rng) + 3 * torch.nn.functional.one_hot(labels, 6), torch.ones(n, 3)
        )
        for n, labels in ((400, torch.arange(400) % 6), (50, torch.arange(50) % 6))
    )
    options = {"ks": (1, 20), "pooling": ("cls", "mean")}
    exact, other = (FakeJob(knn.Config(**options, search=way, probes=10**6), train, test) for way in ("exact", search))
    expected, found = by_name(exact), by_name(other)
    assert {n: s.outcomes.tolist() for n, s in found.items()} == {n: s.outcomes.tolist() for n, s in expected.items()}
    assert "search" not in exact.facts
    told = other.facts["search"]
    assert list(told) == ["cls", "mean"]
    if search == "faiss":
        assert told["cls"] == {"index": "Flat"}
    else:
        assert told["cls"] == {"index": "IVF10,Flat", "probes": 10, "queries": 50, "recall@1": 1.0, "recall@20": 1.0}


def test_an_approximate_search_tells_its_recall():
    rng = torch.Generator().manual_seed(0)
    train, test = (features(torch.arange(n) % 6, torch.randn(n, 6, generator=rng)) for n in (2000, 50))
    job = FakeJob(knn.Config(ks=(5, 50), search="faiss-ivf", probes=1), train, test)
    assert len(by_name(job)) == 4
    told = job.facts["search"]["cls"]
    assert told["probes"] == 1 and 0 < told["recall@50"] < told["recall@5"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": ()}, "at least one"),
        ({"pooling": ("cls", "cls")}, "each once"),
        ({"pooling": ("projection", "projection")}, "once"),
        ({"pooling": ("cls", "max")}, "max"),
        ({"probes": 0}, "probes is 0"),
        ({"ks": (0,)}, "ks"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        knn.Config(**options)


RECIPES = [name for name in catalog.recipes() if catalog.recipe(name).runner == "knn"]
VARIANTS = {
    "mugs-s": ((10, 15, 20, 30, 40, 50, 100, 200), 0.05, ("cls",)),
    "mugs-bl": ((10, 15, 20, 30, 40, 50, 100, 200), 0.04, ("cls",)),
    "mmc": ((10, 20, 50, 100), 0.07, ("cls", "mean", "cls+mean")),
    "selfpatch": ((20,), 0.07, ("cls", "mean")),
    "patches": ((1, 5, 10, 20, 100, 200), 0.07, ("patches", "mean")),
}
OURS = {"patches"}
"""On the shipped data only: no paper evaluates it."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_the_papers_say(name):
    recipe = catalog.recipe(name)
    config = runners.configure("knn", recipe.config)
    for variant, said in VARIANTS.items():
        if name.endswith(f"-{variant}"):
            assert (config.ks, config.temperature, config.pooling) == said
            break
    else:
        assert config.temperature == 0.07 and {10, 20} <= set(config.ks) and config.pooling[0] == "cls"
    assert config.search == "exact"
    needed = {"mean": "patches", "cls+mean": "patches"}
    assert recipe.needs and set(recipe.needs) <= {"cls", "patches"}
    assert ("cls" in recipe.needs) == any("cls" in pooling for pooling in config.pooling)
    if name.endswith(("-mmc", "-selfpatch")):
        assert {needed.get(p, "cls") for p in config.pooling} <= set(recipe.needs)
    assert int(recipe.headline.removeprefix("top1@k=")) in config.ks


def test_every_variant_of_every_data_set_is_there():
    data = {"imagenet1k", "imagenet100", "imagenet10", "cifar10", "cifar100", "pets", "flowers", "cars"}
    whole = {f"knn-{name}" for name in data} | {"knn-inaturalist18", "knn-inaturalist19"}
    variants = {f"knn-imagenet1k-{variant}" for variant in VARIANTS if variant not in OURS}
    variants |= {f"knn-{name}-mmc" for name in ("imagenet100", "cifar10", "pets", "flowers")} | {
        "knn-imagenet10-selfpatch"
    }
    mini = {"mini-knn-ccp-items", "mini-knn-coco-objects", "mini-knn-coco-objects-mmc"}
    assert set(RECIPES) >= whole | variants | mini | {f"mini-knn-ccp-items-{variant}" for variant in VARIANTS}
