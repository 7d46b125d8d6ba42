"""Every family against its oracle: each official file layout, three image sizes, float64 to 1e-9 and float32 to 1e-5."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evalkit import adapters
from evalkit.errors import NoProjection
from tests.adapters import oracles
from tests.adapters.written import load, saved

FAMILIES = [family for family in oracles.names() if family in adapters.names()]
FILES = [(family, file.name) for family in FAMILIES for file in oracles.files(family)]


@pytest.fixture(params=FILES, ids="-".join)
def case(request, tmp_path, monkeypatch):
    """(oracle, file, loaded encoder)."""
    family, name = request.param
    oracle = oracles.module(family)
    file = next(file for file in oracles.files(oracle.FAMILY) if file.name == name)
    return oracle, file, load(oracle, file, saved(file, tmp_path), monkeypatch)


def images(oracle, file):
    """The native size (at most 8 x 8 patches of it where nothing is learned per position), a larger square, a rectangle."""
    facts = oracle.ARCHS[file.arch or oracle.ARCH]
    h, p = facts.size // facts.patch, facts.patch
    rng = torch.Generator().manual_seed(0)
    for grid in ((h, h), (h + 3, h + 3), (h - 2, 2 * h // 3)):
        yield torch.randn(1, 3, grid[0] * p, grid[1] * p, generator=rng, dtype=torch.float64)


def close(ours, truth, tolerance):
    assert (ours is None) == (truth is None)
    if truth is not None:
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=tolerance * max(scale, 1))


def prefix(encoder):
    vit = getattr(encoder, "vit", None)
    return vit.config.prefix if vit else encoder.model.num_prefix_tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_parity(case, dtype):
    oracle, file, encoder = case
    encoder = encoder.to(dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for x in images(oracle, file):
        truth = oracle.forward(file.weights, x, head=file.head, arch=file.arch or oracle.ARCH)
        x = x.to(dtype)
        (tokens,) = encoder.encode(x)
        close(tokens.cls, truth.cls, tolerance)
        close(tokens.patches, truth.patches, tolerance)
        blocks = encoder.encode(x, blocks=tuple(range(len(truth.blocks))), norm=False)
        for ours, theirs in zip(blocks, truth.blocks, strict=True):
            close(ours.patches.flatten(1, 2), theirs[:, prefix(encoder) :], tolerance)
        check_attention(encoder, x, truth, tolerance)
        check_projection(encoder, tokens, truth, tolerance)


def check_attention(encoder, x, truth, tolerance):
    """The rows of the class token, where there is one, of the first and of the last patch."""
    patches = truth.patches.shape[1] * truth.patches.shape[2]
    front = truth.attention.shape[-1] - patches
    cls = ["cls"] if front else []
    rows = encoder.attention(x, queries=(*cls, 0, patches - 1))
    close(rows, truth.attention[:, :, [*range(len(cls)), front, front + patches - 1]], tolerance)


def check_projection(encoder, tokens, truth, tolerance):
    for at, theirs in (("output", truth.projection), ("bottleneck", truth.bottleneck)):
        if theirs is None:
            with pytest.raises(NoProjection):
                encoder.project(tokens, at=at)
        else:
            close(encoder.project(tokens, at=at), theirs, tolerance)


def test_the_spec_names_the_network(case):
    _, file, encoder = case
    assert encoder.spec.network == file.network


def test_every_family_that_reads_files_has_an_oracle():
    """timm is compared with timm itself, in test_timm.py."""
    needing = {name for name in adapters.names() if adapters.module(name).NEEDS_FILE}
    assert needing - {"timm"} == set(oracles.names())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_architectures_are_those_that_the_oracle_knows(family):
    if not hasattr(adapters.module(family), "FAMILY"):
        pytest.skip(f"{family} reads its architectures from the file")
    known = adapters.module(family).ARCHITECTURES
    ours = {name: oracles.Facts(c.dim, c.depth, c.heads, c.patch, c.size) for name, c in known.items()}
    assert ours == {name: replace(facts) for name, facts in oracles.module(family).ARCHS.items()}
