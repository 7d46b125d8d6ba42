"""Key by key: what is used, dropped, refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Rule, assign, compare, split, strip, unwrap
from evalkit.errors import CheckpointError, KeyMismatch

CLASSIFIER = Rule("classifier", "not part of the encoder", r"head\.(weight|bias)")


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _state(net):
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in net.state_dict().items()}


def _raw(state):
    return RawCheckpoint(state=state, container="torch-zip", sha256="", path=Path("x.pth"))


def test_every_key_is_used(net):
    state = _state(net)
    audit = assign(net, state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert set(audit.used) == set(state)
    assert audit.clean
    assert audit.facts() == {"used": 7, "dtypes": {"float32": 6, "int64": 1}, "dropped": {}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(net, dtype):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in _state(net).items()}
    audit = assign(net, state)
    assert net[0].weight.dtype == torch.float32
    assert torch.equal(net[0].weight, state["0.weight"].float())
    assert audit.dtypes[str(dtype).removeprefix("torch.")] == 6


def test_dropped_by_a_named_rule(net):
    audit = assign(net, _state(net) | {"head.weight": torch.zeros(2)}, [CLASSIFIER])
    assert audit.dropped == {"classifier": ("head.weight",)}


def test_a_rule_covers_whole_keys_only(net):
    for key in ("my.head.weight", "head.weight.extra", "headXweight"):
        with pytest.raises(KeyMismatch, match="unexpected"):
            assign(net, _state(net) | {key: torch.zeros(2)}, [CLASSIFIER])


def test_a_rule_never_drops_what_the_network_has(net):
    audit = compare(net.state_dict(), _state(net), [Rule("all", "", ".*")])
    assert audit.clean
    assert not audit.dropped


def _mutations(state):
    renamed = {("0.wight" if key == "0.weight" else key): value for key, value in state.items()}
    return {
        "one missing": ({key: value for key, value in state.items() if key != "1.bias"}, r"missing \(1\): 1\.bias"),
        "one renamed": (renamed, r"missing \(1\): 0\.weight\n  unexpected \(1\): 0\.wight"),
        "one too many": (state | {"2.extra": torch.zeros(1)}, r"unexpected \(1\): 2\.extra"),
        "mis-shaped": (
            state | {"0.bias": torch.zeros(5)},
            r"mis-shaped \(1\): 0\.bias \(file \(5,\), expected \(4,\)\)",
        ),
        "transposed": (state | {"0.weight": torch.zeros(3, 4)}, r"file \(3, 4\), expected \(4, 3\)"),
        "empty": ({}, r"missing \(7\)"),
    }


@pytest.mark.parametrize("name", ["one missing", "one renamed", "one too many", "mis-shaped", "transposed", "empty"])
def test_anything_else_is_refused_and_nothing_is_changed(net, name):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state, says = _mutations(_state(net))[name]
    with pytest.raises(KeyMismatch, match=says):
        assign(net, state, [CLASSIFIER], what="tiny")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(net, value):
    state = _state(net)
    state["0.weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 1 of 7 weights: 0\.weight"):
        assign(net, state)
    assert net[0].weight.isfinite().all()


def test_a_dropped_key_may_hold_anything(net):
    assign(net, _state(net) | {"head.bias": torch.full((2,), float("nan"))}, [CLASSIFIER])


def test_quantised_weights(net):
    with pytest.raises(CheckpointError, match=r"0\.bias hold torch\.int8; quantised"):
        assign(net, _state(net) | {"0.bias": torch.ones(4, dtype=torch.int8)})


def test_lists_are_bounded(net):
    extra = {f"blocks.{i}.a": torch.zeros(1) for i in range(1000)}
    with pytest.raises(KeyMismatch) as caught:
        assign(net, _state(net) | extra)
    assert "and 992 more" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_prefix_is_stripped_at_the_beginning_only():
    state = {"module.a": torch.zeros(1), "module.blocks.module.b": torch.zeros(1)}
    assert list(strip(state, "module.")) == ["a", "blocks.module.b"]
    mixed = {"module.a": torch.zeros(1), "b.module.c": torch.zeros(1)}
    assert list(strip(mixed, "module.")) == list(mixed)
    assert strip({}, "module.") == {}


def test_split():
    state = {"backbone.a": torch.zeros(1), "head.backbone.b": torch.zeros(1)}
    inside, rest = split(state, "backbone.")
    assert list(inside) == ["a"]
    assert list(rest) == ["head.backbone.b"]


def test_unwrap():
    inner = {"a": torch.zeros(1)}
    network = unwrap(_raw({"epoch": 3, "model": inner, "optimizer": {}}), ["state_dict", "model"])
    assert (list(network.state), network.name, network.beside) == (["a"], "model", ("epoch", "optimizer"))
    bare = unwrap(_raw(inner), ["model"])
    assert (list(bare.state), bare.name, bare.beside) == (["a"], "", ())


def test_unwrap_finds_nothing():
    raw = _raw({"student": {"a": torch.zeros(1)}, "epoch": 3, "args": None})
    says = r"no weights .* under 'model'; it holds: student \(dict\), epoch \(int\), args \(NoneType\).*under 'student'"
    with pytest.raises(CheckpointError, match=says):
        unwrap(raw, ["model"])
    with pytest.raises(CheckpointError, match="it holds: nothing"):
        unwrap(_raw({}), ["model"])


@pytest.mark.parametrize("state", [{"w": torch.zeros(1), "epoch": 3}, {"w": torch.zeros(1), 7: torch.zeros(1)}])
def test_entries_that_are_no_tensors(state):
    with pytest.raises(CheckpointError, match=r"no tensors: (epoch|7)"):
        unwrap(_raw(state), ["model"])


def test_an_empty_network():
    with pytest.raises(CheckpointError, match="entry 'model', has no entries"):
        unwrap(_raw({"model": {}}), ["model"])


def _module(shapes):
    """A module that has exactly these parameters."""
    module = nn.Module()
    for key, shape in shapes.items():
        *path, last = key.split(".")
        owner = module
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return module


def _hint(expected, state):
    module, found = _module(expected), {key: torch.zeros(shape) for key, shape in state.items()}
    with pytest.raises(KeyMismatch) as caught:
        assign(module, found)
    return str(caught.value)


def test_hints():
    two = {"a.w": 2, "b.w": 2}
    assert "begins with 'encoder.'; without it 2" in _hint(two, {f"encoder.{key}": 2 for key in two})
    assert "begins with 'x.y.'" in _hint(two, {f"x.y.{key}": 2 for key in two})
    assert "several networks (student, teacher)" in _hint(two, {"student.a": 1, "teacher.a": 1})
    assert "196" not in _hint({"pos_embed": (1, 197, 4)}, {"pos_embed": (1, 785, 4)})
    assert "785 rows (28 x 28 patches + 1)" in _hint({"pos_embed": (1, 197, 4)}, {"pos_embed": (1, 785, 4)})
    assert "8 pixels a side" in _hint(
        {"patch_embed.proj.weight": (4, 3, 16, 16)}, {"patch_embed.proj.weight": (4, 3, 8, 8)}
    )
    assert "768 wide, this architecture 384" in _hint({"norm.weight": 384}, {"norm.weight": 768})
    short, long = ({f"blocks.{i}.norm1.weight": 2 for i in range(n)} for n in (6, 12))
    assert "deeper: blocks 6 to 11" in _hint(short, long)
    assert "shallower: blocks 6 to 11" in _hint(long, short)


def test_strange_shapes_give_no_strange_errors():
    for shape in ((), (3,), (1, 0, 0), (1, 2, 3, 4)):
        assert "mis-shaped" in _hint({"pos_embed": (1, 197, 4)}, {"pos_embed": shape})
        assert "mis-shaped" in _hint({"norm.weight": (384,)}, {"norm.weight": (*shape, 9)})
        assert "mis-shaped" in _hint({"patch_embed.proj.weight": (4, 3, 8, 8)}, {"patch_embed.proj.weight": shape})
