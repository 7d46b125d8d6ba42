"""Rows that wait (for a shard, a page's next click) own their memory: a view would keep the tokens of its whole batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from feature_fakes import VIEW, MeanColour, Photos, spec
from PIL import Image
from torch import Tensor

from evalkit.features.extract import ExtractOptions, Plan
from evalkit.features.forward import owned
from evalkit.features.key import Request
from evalkit.features.stored import Gathered
from evalkit.reporting.looking import Eyes
from evalkit.types import EncoderSpec, Tokens

REGISTERS = 4


@dataclass
class Sliced(MeanColour):
    """Cuts all that it gives out of one tensor, as a transformer does: class token, registers, patches."""

    spec: EncoderSpec = field(
        default_factory=lambda: spec(offers=frozenset({"cls", "patches", "blocks", "projection"}))
    )

    def encode(self, images: Tensor, blocks: Any = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        found = []
        for tokens in super().encode(images, blocks, norm):
            assert tokens.cls is not None
            others = tokens.cls[:, None].expand(-1, 1 + REGISTERS, -1)
            whole = torch.cat([others, tokens.patches.flatten(1, 2)], dim=1)
            found.append(Tokens(whole[:, 0], whole[:, 1 + REGISTERS :].unflatten(1, (2, 2))))
        return tuple(found)

    def project(self, tokens: Tokens, at: str = "output") -> Tensor:
        assert tokens.cls is not None
        return tokens.cls.repeat(1, 3)[:, : 4 if at == "output" else 2]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("registers", [True, False])
def test_every_part_of_a_batch_owns_its_memory(dtype, registers):
    encoder = Sliced() if registers else MeanColour()
    parts = ("cls", "mean", "patches", *(("projection", "bottleneck") if registers else ()))
    plan = Plan(encoder, Photos(7), VIEW, Request(parts, (0, 3)), ExtractOptions(batch_size=3, patches_dtype=dtype))
    batches = [rows for _, rows in plan.computed(plan.spans, plan.request)]
    assert [len(rows["cls.3"]) for rows in batches] == [3, 3, 1]
    assert {name.split(".")[0] for name in batches[0]} == {*parts, "grids"}
    for rows in batches:
        kept = [values for name, values in rows.items() if name != "grids"]
        assert all(values.untyped_storage().nbytes() == values.nbytes for values in kept)
        assert len({values.untyped_storage().data_ptr() for values in kept}) == len(kept)


def test_what_a_picture_showed_owns_its_memory():
    tokens = Eyes(Sliced(), torch.device("cpu")).see(Image.new("RGB", (16, 16))).tokens
    assert tokens.untyped_storage().nbytes() == tokens.nbytes


def test_what_owns_its_memory_is_not_copied():
    whole = torch.rand(3, 5)
    assert owned(whole) is whole
    assert torch.equal(owned(whole[:, 1:3]), whole[:, 1:3]) and owned(whole[:, 1:3]).is_contiguous()


def test_batches_are_gathered_in_memory_taken_once():
    gathered, batches = Gathered(7), [torch.rand(3, 2), torch.rand(3, 2), torch.rand(1, 2)]
    places = set()
    for batch in batches:
        gathered.add({"cls.0": batch}, len(batch))
        places.add(gathered.rows()["cls.0"].data_ptr())
    assert len(places) == 1 and torch.equal(gathered.rows()["cls.0"], torch.cat(batches))
    gathered.add({"cls.0": batches[0]}, 3)  # more than was expected
    assert torch.equal(gathered.rows()["cls.0"], torch.cat([*batches, batches[0]]))


def test_a_batch_of_broken_images_does_not_hinder_gathering():
    gathered, rows = Gathered(4), torch.rand(2, 3)
    for values, images in ((rows[:0], 0), (rows, 1), (rows[:0], 0), (rows, 1)):  # two tokens of each image
        gathered.add({"patches.0": values}, images)
    assert torch.equal(gathered.rows()["patches.0"], torch.cat([rows, rows]))
