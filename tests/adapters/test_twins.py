"""An untrained twin is the same network without its training: one per network, named by it, the same wherever it is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evalkit import adapters, catalog
from evalkit.adapters import twins
from evalkit.adapters.moco_v3 import _check_positions
from evalkit.engine.evaluate import load
from evalkit.errors import NoProjection, UsageError
from evalkit.types import Encoder, Manifest, Preprocessing
from tests.contract.makers import ENCODERS, Exempt

NETWORKS = {
    "micro-dino": "random", "micro-ibot": "random", "micro-mugs": "random", "micro-mmc": "random", "micro-mgc": "random",
    "micro-moco-v3": "random-moco_v3", "micro-mae": "random-mae", "micro-cae": "random-cae", "micro-selfpatch": "random-selfpatch",
}  # fmt: skip
"""Of the shipped encoders: positions at other sizes differ in MoCo v3, MAE and CAE, which has LayerScale too; SelfPatch makes
its class token behind patches without a final norm."""


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return dict(encoder.state_dict())  # type: ignore[attr-defined]


def same(one: Encoder, other: Encoder) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_each_shipped_encoder_has_the_twin_of_its_network() -> None:
    shipped = [name for name in catalog.shipped_encoders() if not catalog.manifest(name).control]
    assert {name: twins.name(load(name).spec) for name in shipped} == NETWORKS


def test_the_zoos_random_is_the_twin_of_the_plain_ones() -> None:
    twin, random = load("random:micro-mugs"), load("random")
    assert same(twin, random)
    facts = ("id", "family", "arch", "network", "digest", "seed", "adapter_version", "offers", "parameters")
    assert [getattr(twin.spec, f) for f in facts] == [getattr(random.spec, f) for f in facts]
    assert replace(twin.spec.preprocessing, source="") == replace(random.spec.preprocessing, source="")
    assert twin.spec.audit["untrained twin of"]["id"] == "micro-mugs"


@pytest.fixture(params=sorted(set(ENCODERS) - {"random", "pixels", "fake"}))
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    make = ENCODERS[request.param]
    if isinstance(make, Exempt):
        pytest.skip(make.reason)
    return make(tmp_path)


def test_every_family_has_twins(trained: Encoder) -> None:
    """Same sizes, same offers but the projection, same tokens in shape, other weights; the same twin twice."""
    before = torch.get_rng_state()
    twin, again = twins.of(trained), twins.of(trained)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(twin, again) and not same(twin, twins.of(trained, seed=1))
    spec, own = twin.spec, trained.spec
    assert spec.id == twins.name(own) and spec.id.startswith("random")
    for fact in ("dim", "depth", "heads", "patch", "grid", "preprocessing", "built"):
        assert getattr(spec, fact) == getattr(own, fact)
    assert spec.offers == own.offers - {"projection"}
    assert (spec.network, spec.digest, spec.seed) == ("untrained", "", 0)
    x = torch.randn(2, 3, 3 * own.patch, 2 * own.patch, generator=torch.Generator().manual_seed(0))
    (mine,), (theirs,) = twin.encode(x), trained.encode(x)
    assert mine.patches.shape == theirs.patches.shape
    assert (mine.cls is None) == (theirs.cls is None)
    with pytest.raises(NoProjection):
        twin.project(mine)
    assert not any(p.requires_grad for p in twin.parameters())  # type: ignore[attr-defined]


def test_what_decides_the_network_decides_the_name() -> None:
    spec = load("micro-dino").spec
    changed = {
        "random-32px": replace(spec, preprocessing=replace(spec.preprocessing, size=32)),
        "random-vit_small_patch16": replace(
            spec, arch="vit_small_patch16", preprocessing=Preprocessing(),
            built=adapters.specs.built(adapters.module("dino").ARCHITECTURES["vit_small_patch16"]),  # type: ignore[attr-defined,index]
        ),
        "random": replace(spec, id="another", digest="0" * 64, network="student", family="mmc"),
    }  # fmt: skip
    assert {name: twins.name(found) for name, found in changed.items()} == {name: name for name in changed}
    names = [
        twins.name(replace(spec, built={**spec.built, key: value}))
        for key, value in (("heads", 6), ("eps", 1e-5), ("registers", 4), ("layer_scale", 0.1), ("positions", "timm"))
    ]
    names.append(twins.name(replace(spec, preprocessing=replace(spec.preprocessing, mean=(0.5, 0.5, 0.5)))))
    assert len({*names, "random"}) == 7  # each of them another


def test_moco_v3_starts_with_its_own_positions() -> None:
    twin = load("random:micro-moco-v3")
    vit = twin.vit  # type: ignore[attr-defined]
    _check_positions(vit.pos_embed, vit.config, None)  # type: ignore[arg-type]
    bound = (6 / (2 * 192)) ** 0.5
    assert 0.99 * bound < vit.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert vit.cls_token.abs().max() < 1e-5


@pytest.mark.parametrize("control", ["random", "pixels"])
def test_a_control_has_no_twin(control: str) -> None:
    with pytest.raises(UsageError, match=f"{control} has no untrained twin: it is a control itself"):
        load(f"random:{control}")


def test_a_family_that_does_not_say_how_it_starts_has_none() -> None:
    encoder = adapters.load(Manifest("mine", "fake", "fake_patch8"))
    encoder.spec = replace(encoder.spec, digest="0" * 64)  # type: ignore[misc]
    with pytest.raises(UsageError, match="'fake' does not say how it starts"):
        twins.of(encoder)
