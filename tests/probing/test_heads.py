"""Stacked heads against one `nn.Linear` and one `torch.optim.SGD` per head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evalkit.errors import UsageError
from evalkit.probing.heads import Heads, first_weights
from evalkit.probing.norm import BatchNorm


def batches(count, size, dim, classes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(size, dim, generator=rng, dtype=torch.float64), torch.randint(classes, (size,), generator=rng)


def separate(init, rates, decays, momentum, steps):
    """The obvious way: autograd and torch's SGD."""
    found = []
    for rate, decay in zip(rates, decays, strict=True):
        module = nn.Linear(*init.shape, dtype=torch.float64)
        module.weight.data.copy_(init.T)
        module.bias.data.zero_()
        sgd = torch.optim.SGD(module.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
        for (features, labels), factor in steps:
            sgd.param_groups[0]["lr"] = rate * factor
            sgd.zero_grad()
            nn.functional.cross_entropy(module(features), labels).backward()
            sgd.step()
        found.append(module)
    return found


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sampled_from([1e-4, 0.03, 0.5, 2.0]), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(2, 5),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0.0, 0.01]),
)
def test_equals_autograd_and_sgd(rates, dim, classes, size, momentum, decay):
    init = torch.randn(dim, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    decays = [decay * index for index in range(1, len(rates) + 1)]
    steps = [(batch, 1 / (1 + index)) for index, batch in enumerate(batches(6, size, dim, classes))]
    heads = Heads(init, rates, momentum=momentum, weight_decay=decays)
    for (features, labels), factor in steps:
        heads.step(features, labels, factor)
    for index, module in enumerate(separate(init, rates, decays, momentum, steps)):
        weight, bias = heads.head(index)
        assert torch.allclose(weight, module.weight, rtol=1e-10, atol=1e-12)
        assert torch.allclose(bias, module.bias, rtol=1e-10, atol=1e-12)


def test_logits_are_those_of_each_head():
    heads = Heads(first_weights(3, 4, torch.Generator().manual_seed(0)).double(), [0.1, 1.0])
    for features, labels in batches(3, 5, 3, 4):
        heads.step(features, labels)
    asked = torch.randn(7, 3, dtype=torch.float64)
    for index in range(2):
        assert torch.allclose(heads.logits(asked)[:, index], nn.functional.linear(asked, *heads.head(index)))


def test_batches_of_changing_size():
    init = torch.zeros(3, 2, dtype=torch.float64)
    heads = Heads(init, [0.3])
    steps = [(next(batches(1, size, 3, 2, seed=size)), 1.0) for size in (4, 4, 1, 4)]
    for (features, labels), factor in steps:
        heads.step(features, labels, factor)
    assert torch.allclose(heads.head(0)[0], separate(init, [0.3], [0.0], 0.9, steps)[0].weight, rtol=1e-10)


def test_a_diverged_head_leaves_the_others_alone():
    init = first_weights(4, 3, torch.Generator().manual_seed(0))
    both, alone = Heads(init, [3e38, 0.1]), Heads(init, [0.1])
    for features, labels in batches(5, 8, 4, 3):
        both.step(9 * features.float(), labels)
        alone.step(9 * features.float(), labels)
    assert both.alive().tolist() == [False, True]
    assert torch.allclose(both.head(1)[0], alone.head(0)[0], rtol=1e-6)


def test_state_goes_on_identically():
    init = first_weights(4, 3, torch.Generator().manual_seed(0)).double()
    whole, first, second = (Heads(init, [0.1, 1.0]) for _ in range(3))
    for index, (features, labels) in enumerate(batches(6, 8, 4, 3)):
        whole.step(features, labels)
        (first if index < 3 else second).step(features, labels)
        if index == 2:
            second.restore(first.state())
    assert torch.equal(whole.head(1)[0], second.head(1)[0])
    assert not torch.equal(first.head(1)[0], second.head(1)[0])


def test_refuses_the_state_of_other_heads():
    with pytest.raises(UsageError, match="weight does not fit"):
        Heads(torch.zeros(2, 2), [0.1]).restore(Heads(torch.zeros(3, 2), [0.1]).state())


def test_first_weights_come_from_the_generator():
    draw = first_weights(200, 50, torch.Generator().manual_seed(3))
    assert torch.equal(draw, first_weights(200, 50, torch.Generator().manual_seed(3)))
    assert draw.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [{"rates": []}, {"rates": [0.0]}, {"rates": [0.1], "momentum": 1.0}, {"rates": [0.1], "weight_decay": -1.0},
     {"rates": [0.1], "weight_decay": [0.0, 0.0]}],
)  # fmt: skip
def test_refuses_options_that_cannot_be(options):
    with pytest.raises(UsageError):
        Heads(torch.zeros(2, 2), **options)


class PlainLars(torch.optim.Optimizer):
    """LARS as MAE's probe has it, one parameter after the other."""

    def __init__(self, parameters, lr, weight_decay, momentum=0.9):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                update = parameter.grad.clone()
                if parameter.ndim > 1:
                    update += group["weight_decay"] * parameter
                    its, own = float(update.norm()), float(parameter.norm())
                    if its > 0 and own > 0:
                        update *= 0.001 * own / its
                speed = self.state[parameter].get("speed", torch.zeros_like(parameter))
                self.state[parameter]["speed"] = speed = group["momentum"] * speed + update
                parameter -= group["lr"] * speed


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("images", [0, 4])
@pytest.mark.parametrize("optimiser", ["lars", "sgd"])
def test_batch_norm_and_lars_equal_plain_modules(optimiser, images, decay):
    """Every parameter and both running statistics, then the logits of the evaluated modules."""
    rates, factors = [0.05, 3.0, 40.0], [0.0, 0.5, 1.0, 0.7, 0.2]
    init = first_weights(6, 5, torch.Generator().manual_seed(1)).double()
    heads = Heads(init, rates, weight_decay=decay, optimiser=optimiser, norm=BatchNorm(6, init, images))
    steps = list(zip(batches(5, 8, 6, 5), factors, strict=True))
    asked = torch.randn(7, 6, dtype=torch.float64)
    for (features, labels), factor in steps:
        heads.step(3 * features + 2, labels, factor)
    for index, rate in enumerate(rates):
        norm, layer = nn.BatchNorm1d(6, affine=False, eps=1e-6).double(), nn.Linear(6, 5).double()
        layer.weight.data.copy_(init.T)
        layer.bias.data.zero_()
        kind = PlainLars if optimiser == "lars" else torch.optim.SGD
        optimise = kind(layer.parameters(), lr=rate, weight_decay=decay, momentum=0.9)
        for (features, labels), factor in steps:
            optimise.param_groups[0]["lr"] = rate * factor
            optimise.zero_grad()
            rows = _in_pieces(norm, 3 * features + 2, images)
            nn.functional.cross_entropy(layer(rows), labels).backward()
            optimise.step()
        weight, bias = heads.head(index)
        assert torch.allclose(weight, layer.weight, rtol=1e-9, atol=1e-12)
        assert torch.allclose(bias, layer.bias, rtol=1e-9, atol=1e-12)
        norm.eval()
        assert torch.allclose(heads.norm.mean, norm.running_mean, rtol=1e-12)
        assert torch.allclose(heads.norm.var, norm.running_var, rtol=1e-12)
        assert torch.allclose(heads.logits(asked)[:, index], layer(norm(asked)), rtol=1e-9, atol=1e-12)


def _in_pieces(norm, features, images):
    """Each piece by its own statistics, the running ones by the first piece alone."""
    pieces = features.split(images or len(features))
    other = nn.BatchNorm1d(6, affine=False, eps=1e-6).double()
    return torch.cat([norm(pieces[0]), *[other(piece) for piece in pieces[1:]]])


def test_state_goes_on_identically_behind_a_norm():
    init = first_weights(4, 3, torch.Generator().manual_seed(0)).double()
    make = lambda: Heads(init, [1.0, 30.0], optimiser="lars", norm=BatchNorm(4, init))
    whole, first, second = make(), make(), make()
    for index, (features, labels) in enumerate(batches(6, 8, 4, 3)):
        whole.step(features, labels)
        (first if index < 3 else second).step(features, labels)
        if index == 2:
            second.restore(first.state())
    assert torch.equal(whole.head(1)[0], second.head(1)[0])
    assert torch.equal(whole.logits(features), second.logits(features))


def test_a_diverged_head_leaves_the_others_alone_under_lars():
    init = first_weights(4, 3, torch.Generator().manual_seed(0))
    both, alone = Heads(init, [3e38, 5.0], optimiser="lars"), Heads(init, [5.0], optimiser="lars")
    for features, labels in batches(30, 8, 4, 3):
        both.step(9 * features.float(), labels)
        alone.step(9 * features.float(), labels)
    assert both.alive().tolist() == [False, True]
    assert torch.allclose(both.head(1)[0], alone.head(0)[0], rtol=1e-5)
