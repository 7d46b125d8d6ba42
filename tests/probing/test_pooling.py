"""What k-NN and linear heads read: order and source of the concatenated vectors."""

from __future__ import annotations

import pytest
import torch

from evalkit.errors import FeatureError, UsageError
from evalkit.probing import pooling
from evalkit.types import Tokens


class Stored:
    def get(self, part, block=-1):
        return torch.full((2, 1), {"cls": 10.0, "mean": 20.0}[part] + block, dtype=torch.float16)


TOKENS = [Tokens(torch.full((2, 1), 10.0 + b), torch.full((2, 2, 3, 1), 20.0 + b)) for b in (-2, -1)]


@pytest.mark.parametrize(
    ("name", "blocks", "row"),
    [("cls", (-1,), [9]), ("cls", (-2, -1), [8, 9]), ("mean", (-2, -1), [19]), ("cls+mean", (-2, -1), [8, 9, 19])],
)
def test_stored_and_fresh_agree(name, blocks, row):
    stored = pooling.of_features(Stored(), name, blocks)
    assert stored.dtype == torch.float32
    assert stored.tolist() == [row, row]
    assert torch.equal(stored, pooling.of_tokens(TOKENS[-len(blocks) :], [name])[name])


def test_mean_is_over_all_patches():
    patches = torch.arange(12.0).view(1, 2, 3, 2)
    found = pooling.of_tokens([Tokens(None, patches)], ["mean"])["mean"]
    assert found.tolist() == [[5.0, 6.0]]


def test_patches_keep_their_places():
    patches = torch.arange(12.0).view(1, 2, 3, 2)

    class Grid:
        def get(self, part, block=-1):
            return {"patches": patches.half()}[part]

    fresh = pooling.of_tokens([Tokens(None, patches)], ["patches"])["patches"]
    assert fresh.tolist() == [list(range(12))]
    assert torch.equal(pooling.of_features(Grid(), "patches"), fresh)
    assert pooling.inputs_of(["patches"], [1, 4]) == {"patches@1": ("patches", 1)}


def test_parts_of():
    assert pooling.parts_of(["patches"]) == ("patches",)
    assert pooling.parts_of(["mean"]) == ("mean",)
    assert pooling.parts_of(["cls+mean", "cls"]) == ("cls", "mean")


def test_refuses():
    for wrong in ([], ["cls", "cls"], ["gap"]):
        with pytest.raises(UsageError, match="poolings"):
            pooling.check(wrong)
    with pytest.raises(FeatureError, match="class token"):
        pooling.of_tokens([Tokens(None, torch.zeros(1, 1, 1, 2))], ["cls"])
    with pytest.raises(FeatureError, match="first is row 1"):
        pooling.of_tokens([Tokens(torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 1, 1, 1))], ["cls"])


def test_inputs_of_a_sweep():
    assert pooling.inputs_of(["cls", "mean"], [4]) == {"cls": ("cls", 4), "mean": ("mean", 4)}
    assert pooling.inputs_of(["cls", "mean", "cls+mean"], [1, 4]) == {
        "cls@1": ("cls", 1), "mean@1": ("mean", 1), "cls+mean@1": ("cls+mean", 1), "cls@4": ("cls", 4),
        "cls+mean@4": ("cls+mean", 4),
    }  # fmt: skip
