"""Logistic regression against scikit-learn and against its own optimality conditions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from evalkit.errors import FeatureError, ProtocolError, UsageError
from evalkit.probing import holdout
from evalkit.runners import logreg
from tests.runners.fakes import FakeJob, Memory, features


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def labelled(rows, dim, classes, seed=0):
    """Noisy classes of unit features; the labels 0, 3, 6 ... leave gaps."""
    x = normal(rows, dim, seed=seed)
    x /= x.norm(dim=1, keepdim=True)
    y = (x @ normal(dim, classes, seed=seed + 1) + 0.3 * normal(rows, classes, seed=seed + 2)).argmax(1)
    y[:classes] = torch.arange(classes)
    return x, 3 * y


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("classes", [3, 6])
def test_agrees_with_scikit_learn(penalty, classes):
    x, y = labelled(150, 8, classes)
    model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-9, max_iter=10_000).fit(x.numpy(), y.numpy())
    found = logreg.fit(x, y, penalty=penalty)
    assert found.converged
    assert found.classes.tolist() == model.classes_.tolist()
    assert np.abs(found.weight.numpy() - model.coef_).max() < 1e-3 * np.abs(model.coef_).max()
    asked = normal(60, 8, seed=9)
    assert found.predict(asked).tolist() == model.predict(asked.numpy()).tolist()
    loss = -np.log(model.predict_proba(x.numpy())[np.arange(150), y.numpy() // 3]).mean()
    assert found.loss(x, y) == pytest.approx(loss, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.floats(0.05, 5), st.integers(0, 999))
def test_no_step_in_any_direction_improves_on_it(classes, dim, penalty, seed):
    """Two classes too, where scikit-learn has another parametrisation: the objective is written out with autograd."""
    x, y = labelled(4 * classes, dim, classes, seed)
    found = logreg.fit(x, y, penalty=penalty)
    weight = found.weight.clone().requires_grad_()
    logits = x @ weight.T
    loss = (logits.logsumexp(1) - logits[torch.arange(len(y)), y // 3]).mean()
    (loss + penalty / (2 * len(y)) * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-5


def test_the_start_changes_nothing_but_the_time():
    x, y = labelled(80, 6, 4)
    cold = logreg.fit(x, y, penalty=0.1)
    warm = logreg.fit(x, y, penalty=0.1, first=logreg.fit(x, y, penalty=0.2).weight)
    assert torch.allclose(cold.weight, warm.weight, atol=1e-3)
    again = logreg.fit(x, y, penalty=0.1, first=cold.weight)
    assert again.steps < cold.steps


def test_pieces_give_the_same(monkeypatch):
    x, y = labelled(50, 4, 3)
    whole = logreg.fit(x, y, penalty=0.5)
    monkeypatch.setattr(logreg, "CHUNK", 21)
    parts = logreg.fit(x, y, penalty=0.5)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-4)
    assert torch.equal(whole.predict(x), parts.predict(x))


def test_equal_logits_go_to_the_lowest_class_and_unseen_classes_cost_no_loss():
    found = logreg.Fit(torch.zeros(3, 2).double(), torch.tensor([2, 5, 7]), 0, True)
    x = normal(4, 2)
    assert found.predict(x).tolist() == [2, 2, 2, 2]
    assert found.loss(x, torch.tensor([2, 5, 9, 0])) == pytest.approx(np.log(3))
    assert found.loss(x, torch.tensor([1, 6, 9, 0])) == 0.0


def test_a_fit_that_runs_out_of_steps_says_so():
    x, y = labelled(150, 8, 6)
    assert not logreg.fit(x, y, penalty=0.001, iterations=2).converged


# ---------------------------------------------------------------- the runner


class Copies(Memory):
    def save(self, state):
        self.state = copy.deepcopy(state)


def job(train, test, **config):
    given = FakeJob(logreg.Config(**({"lambdas": (0.01, 0.1, 1.0, 10.0), "held_out": 0.25} | config)), train, test)
    given.checkpoint = Copies()
    return given


def data(rows, seed, noise=1.0):
    labels = torch.arange(rows) % 4
    cls = torch.eye(4)[labels] + noise * normal(rows, 4, seed=seed).float()
    return features(labels, cls=cls)


def test_scores_and_facts():
    given = job(data(80, 0), data(60, 1))
    scores = {s.name: s for s in logreg.run(given)}
    assert set(scores) == {"top1", "best-on-test"}
    assert scores["best-on-test"].note == "best-on-test"
    assert scores["top1"].n == 60
    assert 0.4 < scores["top1"].value <= scores["best-on-test"].value
    chosen, how = given.facts["chosen"], given.facts["choices"]["top1"]
    assert chosen["lambda"] * chosen["C"] == pytest.approx(1)
    assert (how["what"], how["chosen"], how["held_out"], how["folds"]) == ("lambda", chosen["lambda"], 80, 5)
    assert given.facts["fits_not_converged"] == []
    assert given.kept["head"]["classes"].tolist() == [0, 1, 2, 3]


def test_the_reported_weights_are_fitted_to_all_labels_with_the_penalty_that_held_out_labels_chose():
    given = job(data(80, 0), data(60, 1))
    value = next(iter(logreg.run(given))).value
    unit = torch.nn.functional.normalize(given.train.rows["cls"], dim=1).numpy()
    model = LogisticRegression(C=given.facts["chosen"]["C"], fit_intercept=False, tol=1e-9, max_iter=10_000)
    model.fit(unit, given.train.labels.numpy())
    asked = torch.nn.functional.normalize(given.test.rows["cls"], dim=1).numpy()
    assert value == pytest.approx(model.score(asked, given.test.labels.numpy()))
    assert np.allclose(given.kept["head"]["weight"], model.coef_, atol=1e-3)


def test_test_labels_choose_nothing():
    """The headline's penalty is the same whatever the test labels are."""
    facts = []
    for shift in range(2):
        given = job(data(80, 0), data(60, 1))
        given.test.labels = (given.test.labels + shift) % 4
        list(logreg.run(given))
        facts.append(given.facts["chosen"])
    assert facts[0] == facts[1]


def test_five_folds_choose_where_few_are_held_out_and_one_share_where_they_are_many(monkeypatch):
    """The candidates' outcomes and losses written out."""
    for few, trials in ((1000, 5), (1, 1)):
        monkeypatch.setattr(holdout, "FEW", few)
        given = job(data(80, 0), data(60, 1))
        list(logreg.run(given))
        unit = torch.nn.functional.normalize(given.train.rows["cls"], dim=1).double()
        held = holdout.trials(given.train.groups, 0.25, given.rng("logreg", "held-out"))
        assert len(held) == trials
        right, lost = [], []
        for penalty in (10.0, 1.0, 0.1, 0.01):
            fits = [logreg.fit(unit[~out], given.train.labels[~out], penalty=penalty) for out in held]
            pairs = [(fit, unit[out], given.train.labels[out]) for fit, out in zip(fits, held, strict=True)]
            right.append(torch.cat([fit.predict(x) == y for fit, x, y in pairs]).double())
            lost.append(sum(fit.loss(x, y) * len(y) for fit, x, y in pairs))
        best = max(row.mean() for row in right)
        error = (best * (1 - best) / len(right[0])).sqrt()
        near = [i for i, row in enumerate(right) if row.mean() >= best - error]
        how = given.facts["choices"]["top1"]
        assert how["chosen"] == (10.0, 1.0, 0.1, 0.01)[lost.index(min(lost))]
        assert (how["within_one_standard_error"], how["held_out"]) == (len(near), len(right[0]))
        assert how["folds"] == (trials if trials > 1 else 0)


def test_a_killed_run_goes_on_where_it_was(monkeypatch):
    whole = job(data(80, 0), data(60, 1))
    expected = [s.value for s in logreg.run(whole)]
    killed, calls, fit = job(data(80, 0), data(60, 1)), [], logreg.fit

    def dying(*args, **options):
        calls.append(options["penalty"])
        if len(calls) == 22:
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(logreg, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        list(logreg.run(killed))
    assert [s.value for s in logreg.run(killed)] == expected
    assert calls == [10.0, 1.0, 0.1, 0.01] * 5 + [10.0, 1.0, 1.0, 0.1, 0.01]  # five folds, and all labels
    assert torch.equal(whole.kept["head"]["weight"], killed.kept["head"]["weight"])


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        (features([1, 1, 1]), features([0, 1]), ProtocolError, "same class"),
        (features(torch.zeros(0, dtype=torch.int64)), features([0, 1]), ProtocolError, "train has 0"),
        (features([0, 1]), features(torch.zeros(0, dtype=torch.int64)), ProtocolError, "test has 0"),
        (features([0, 1], groups=[5, 5]), features([0, 1]), ProtocolError, "at least two"),
        (features([0, 1], cls=torch.full((2, 3), torch.nan)), features([0, 1]), FeatureError, "not finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(train, test, error, message):
    with pytest.raises(error, match=message):
        list(logreg.run(job(train, test)))


@pytest.mark.parametrize(
    "wrong", [{"lambdas": ()}, {"lambdas": (0.0,)}, {"lambdas": (1.0, 1.0)}, {"held_out": 1.0}, {"tolerance": 0.0}]
)
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        logreg.Config(**wrong)
