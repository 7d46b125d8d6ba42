"""One battery for every adapter: what runners may count on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from evalkit import adapters
from evalkit.errors import FeatureError, NoProjection, Unsupported
from evalkit.types import Encoder
from tests.contract.makers import ENCODERS, Exempt


def test_every_family_is_held_by_this_battery() -> None:
    assert set(ENCODERS) == set(adapters.names()), "add the new family to tests/contract/makers.py"


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    make = ENCODERS[request.param]
    if isinstance(make, Exempt):
        pytest.skip(make.reason)
    return make(tmp_path)


def images(encoder: Encoder, h: int, w: int, n: int = 2) -> torch.Tensor:
    p = encoder.spec.patch
    return torch.randn(n, 3, h * p, w * p, generator=torch.Generator().manual_seed(0))


def test_shapes_at_the_native_size_and_at_a_rectangle(encoder: Encoder) -> None:
    spec = encoder.spec
    for h, w in (spec.grid, (3, 5)):
        (tokens,) = encoder.encode(images(encoder, h, w))
        assert tokens.patches.shape == (2, h, w, spec.dim)
        assert (tokens.cls is not None) == ("cls" in spec.offers)
        if tokens.cls is not None:
            assert tokens.cls.shape == (2, spec.dim)
        assert tokens.patches.isfinite().all()


def test_blocks_come_in_the_order_asked_for_and_the_last_is_minus_one(encoder: Encoder) -> None:
    x, last = images(encoder, 2, 3), encoder.spec.depth - 1
    first, final = encoder.encode(x, blocks=(0, -1), norm=False)
    again, start = encoder.encode(x, blocks=(last, 0), norm=(False, False))
    assert torch.equal(final.patches, again.patches)
    assert torch.equal(first.patches, start.patches)


def test_an_image_is_encoded_alike_alone_and_in_company(encoder: Encoder) -> None:
    x = images(encoder, 2, 2, 4)
    (together,), (alone,) = encoder.encode(x), encoder.encode(x[1:2])
    assert torch.allclose(together.patches[1:2], alone.patches, atol=1e-5)


def test_it_is_frozen(encoder: Encoder) -> None:
    x = images(encoder, 2, 2)
    (one,), (two,) = encoder.encode(x), encoder.encode(x)
    assert torch.equal(one.patches, two.patches)
    assert not one.patches.requires_grad


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(encoder: Encoder) -> None:
    with pytest.raises(FeatureError, match=str(encoder.spec.patch)):
        encoder.encode(torch.zeros(1, 3, encoder.spec.patch * 2, encoder.spec.patch * 2 + 1))


def test_a_block_that_does_not_exist_is_refused(encoder: Encoder) -> None:
    for block in (encoder.spec.depth, -encoder.spec.depth - 1):
        with pytest.raises(FeatureError, match=str(encoder.spec.depth)):
            encoder.encode(images(encoder, 2, 2), blocks=(block,))


def test_attention_rows_sum_to_one_or_are_refused(encoder: Encoder) -> None:
    x = images(encoder, 2, 3)
    if "attention" not in encoder.spec.offers:
        with pytest.raises(Unsupported):
            encoder.attention(x)
        return
    rows = encoder.attention(x, queries=("cls", 0, 5) if "cls" in encoder.spec.offers else (0, 3, 5))
    assert rows.shape[:3] == (2, encoder.spec.heads, 3)
    assert rows.shape[3] >= 6
    assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-5)


def test_projection_is_there_or_refused(encoder: Encoder) -> None:
    """A head has an output, a bottleneck, or both; what it lacks is refused."""
    (tokens,) = encoder.encode(images(encoder, 2, 2))
    found = []
    for at in ("output", "bottleneck"):
        with contextlib.suppress(NoProjection):
            found.append(encoder.project(tokens, at=at))  # type: ignore[arg-type]
    assert bool(found) == ("projection" in encoder.spec.offers)
    assert all(len(projected) == 2 and projected.isfinite().all() for projected in found)


def test_the_spec_is_filled(encoder: Encoder) -> None:
    spec = encoder.spec
    assert spec.adapter_version >= 1
    assert min(spec.dim, spec.depth, spec.patch, *spec.grid, spec.preprocessing.size) >= 1
    assert spec.preprocessing.size // spec.patch == spec.grid[0]
    assert {"patches"} <= spec.offers
    assert len(spec.digest) in (0, 64)
    assert spec.network
    assert spec.digest or not adapters.module(spec.family).NEEDS_FILE
