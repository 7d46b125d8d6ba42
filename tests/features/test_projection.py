"""Stored features can hold what the pretraining head makes of the class token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from feature_fakes import VIEW, MeanColour, Photos, Refuses, spec

from evalkit.errors import NoProjection, Unsupported, UsageError
from evalkit.features import forward
from evalkit.features.extract import ExtractOptions, extract
from evalkit.features.key import Request, key_of
from evalkit.features.store import FeatureStore

WIDTH = 5


class Headed(MeanColour):
    """Its head repeats the first value of the class token, negative at the bottleneck; float32 is demanded."""

    def project(self, tokens, at="output"):
        assert tokens.cls.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if at == "bottleneck":
            return -tokens.cls[:, :2]
        return tokens.cls[:, :1].expand(-1, WIDTH)


class Headless(MeanColour):
    def project(self, tokens, at="output"):
        raise NoProjection("mean-colour: no head")


ALL = Request(("cls", "projection", "bottleneck"))


def options(root=None, **changes):
    store = None if root is None else FeatureStore(root)
    return replace(ExtractOptions(store=store, batch_size=3, shard_rows=8, workers=0), **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", ["store", "memory", "recomputed"])
def test_the_head_reads_the_class_token_as_it_is_stored(tmp_path, place, precision, monkeypatch):
    if place == "recomputed":
        monkeypatch.setenv("EVALKIT_CACHE_GB", "0")
    chosen = options(tmp_path if place == "store" else None, precision=precision)
    found = extract(Headed(), Photos(), VIEW, ALL, options=chosen)
    cls = found.get("cls")
    assert torch.equal(found.get("projection"), cls[:, :1].expand(-1, WIDTH))
    assert torch.equal(found.get("bottleneck"), -cls[:, :2])
    assert torch.equal(torch.cat(list(found.batches("projection", size=4))), found.get("projection"))
    assert torch.equal(forward.project(Headed(), cls, "projection"), found.get("projection"))


def test_a_complete_entry_is_read_back(tmp_path):
    made = extract(Headed(), Photos(), VIEW, ALL, options=options(tmp_path)).get("projection")

    class Still(Refuses, Headed):
        pass

    assert torch.equal(extract(Still(), Photos(), VIEW, ALL, options=options(tmp_path)).get("projection"), made)


def test_a_batch_of_broken_images_has_the_width_of_the_head(tmp_path):
    dataset = Photos(broken=frozenset({0, 1, 2}))
    found = extract(Headed(), dataset, VIEW, ALL, options=options(tmp_path, skip_broken=True))
    assert found.get("projection").shape == (len(dataset) - len(found.skipped), WIDTH)
    assert found.skipped


def test_without_a_head_it_is_unsupported():
    with pytest.raises(Unsupported, match="no head"):
        extract(Headless(), Photos(), VIEW, Request(("projection",)), options=options())
    with pytest.raises(NoProjection, match="no class token"):
        extract(Headed(has_cls=False), Photos(), VIEW, Request(("bottleneck",)), options=options())
    assert len(extract(Headless(), Photos(), VIEW, Request(("cls",)), options=options()))


@pytest.mark.parametrize("wrong", [{"blocks": (0,)}, {"blocks": (-1,), "norm": False}, {"blocks": (0, -1)}])
def test_the_head_reads_the_last_block_with_its_norm_alone(wrong):
    with pytest.raises(UsageError, match="last block after the final norm"):
        Request(("projection",), **wrong).resolved(4)
    assert Request(("projection",), (3,)).resolved(4).blocks == (3,)


def test_the_parts_are_told_apart_by_key():
    keys = {
        key_of(spec(), Photos(), VIEW, request=Request(parts), samples="s", precision="fp32", patches="float16").digest
        for parts in [("cls",), ("projection",), ("bottleneck",), ("cls", "projection")]
    }
    assert len(keys) == 4


def test_width():
    assert [forward.width(Headed(), part) for part in ("cls", "patches", "projection", "bottleneck")] == [
        3,
        3,
        WIDTH,
        2,
    ]
