"""What only the files of DINO's descendants have: iBOT's norms and heads, Mugs' three heads, MMC's unknown ones."""

from __future__ import annotations

import argparse

import pytest
import torch

from evalkit import adapters
from evalkit.errors import CheckpointError, KeyMismatch, NoProjection
from tests.adapters import oracles
from tests.adapters.written import load, saved


def file(family, name):
    """One of the oracle's files, its mappings free to change."""
    found = next(f for f in oracles.module(family).files() if f.name == name)
    for key, value in found.content.items():
        found.content[key] = dict(value) if isinstance(value, dict) else value
    return found


def loaded(family, found, folder, patch):
    return load(oracles.module(family), found, saved(found, folder), patch)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop("blocks.1.gamma_2"), r"missing \(1\): blocks\.1\.ls2\.gamma"),
        (lambda m: m.update({"norm.weight": torch.ones(384), "norm.bias": torch.zeros(384)}), r"unexpected \(2\): norm\."),
        (lambda m: m.pop("fc_norm.bias"), r"missing \(1\): cls_norm\.bias"),
        (lambda m: m.update({"blocks.0.ls1.gamma": torch.ones(384)}), r"unexpected \(\d+\): .*gamma_"),
    ],
)  # fmt: skip
def test_ibot_with_half_of_its_options(change, says, tmp_path, monkeypatch):
    found = file("ibot", "fine-tuned by the mean")
    change(found.content["model"])
    with pytest.raises(KeyMismatch, match=says):
        loaded("ibot", found, tmp_path, monkeypatch)


def test_ibot_with_another_activation_in_its_head(tmp_path, monkeypatch):
    """The keys do not show it; the numbers of the projection would be wrong."""
    found = file("ibot", "training")
    found.content["args"] = argparse.Namespace(act_in_head="relu")
    with pytest.raises(CheckpointError, match="act_in_head relu"):
        loaded("ibot", found, tmp_path, monkeypatch)


def test_ibot_names_what_it_leaves_out(tmp_path, monkeypatch):
    audit = loaded("ibot", file("ibot", "training, student"), tmp_path, monkeypatch).spec.audit
    assert audit["backbone"]["dropped"] == {
        "mask-token": ["backbone.masked_embed"],
        "patch-prototypes": ["head.last_layer2.weight_g", "head.last_layer2.weight_v"],
    }


def test_two_heads_of_one_name_are_refused(tmp_path, monkeypatch):
    found = file("ibot", "extracted student with its head")
    head = {k.removeprefix("module."): v for k, v in found.content["state_dict"].items() if k.startswith("module.")}
    found.content["state_dict"] |= head
    with pytest.raises(KeyMismatch, match="unexpected"):
        loaded("ibot", found, tmp_path, monkeypatch)
    found = file("mugs", "training")
    found.content["teacher"]["group_head.mlp.0.weight"] = torch.zeros(48, 384)
    with pytest.raises(KeyMismatch, match=r"none of DINO's|unexpected"):
        loaded("mugs", found, tmp_path, monkeypatch)


def test_mugs_names_what_it_leaves_out(tmp_path, monkeypatch):
    dropped = loaded("mugs", file("mugs", "training, student"), tmp_path, monkeypatch).spec.audit["backbone"]["dropped"]
    assert {name: len(keys) for name, keys in dropped.items()} == {
        "relation-blocks": 12,
        "instance-head": 5,
        "local-group-head": 5,
    }


@pytest.mark.parametrize("key", ["relation_blocks.0.extra", "relation.0.norm1.weight", "instance_head.extra"])
def test_mugs_leaves_out_no_more_than_that(key, tmp_path, monkeypatch):
    found = file("mugs", "training")
    found.content["teacher"][f"backbone.{key}" if key.startswith("relation") else key] = torch.zeros(3)
    with pytest.raises(KeyMismatch, match=key.replace(".", r"\.")):
        loaded("mugs", found, tmp_path, monkeypatch)


def test_mmc_offers_no_projection(tmp_path, monkeypatch):
    encoder = loaded("mmc", file("mmc", "training"), tmp_path, monkeypatch)
    assert "projection" not in encoder.spec.offers
    assert len(encoder.spec.audit["backbone"]["dropped"]["heads"]) == 18
    with pytest.raises(NoProjection):
        encoder.project(encoder.encode(torch.zeros(1, 3, 32, 32))[0])


def test_mmc_reads_a_head_of_known_layers(tmp_path, monkeypatch):
    """SiT's: batch norm after every layer. evalkit's own pretraining writes it; the other heads are left out as ever."""
    found = file("mmc", "training, teacher not wrapped")
    teacher, shapes = found.content["teacher"], {0: (48, 384), 3: (48, 48), 6: (24, 48)}
    teacher |= {f"head.mlp.{i}.weight": torch.randn(shape) for i, shape in shapes.items()}
    for i, width in ((1, 48), (4, 48), (7, 24)):
        teacher |= {
            f"head.mlp.{i}.running_mean": torch.randn(width),
            f"head.mlp.{i}.running_var": torch.rand(width) + 0.5,
        }
        teacher[f"head.mlp.{i}.num_batches_tracked"] = torch.tensor(3)
        teacher |= {f"head.mlp.{i}.{key}": torch.randn(width) for key in ("weight", "bias") if i != 7}
    encoder = loaded("mmc", found, tmp_path, monkeypatch)
    assert len(encoder.spec.audit["backbone"]["dropped"]["heads"]) == 12
    (tokens,) = encoder.encode(torch.randn(2, 3, 32, 32))
    x = tokens.cls
    for i, activation in ((0, torch.relu), (3, torch.nn.functional.gelu), (6, lambda v: v)):
        x = x @ teacher[f"head.mlp.{i}.weight"].T + teacher[f"head.mlp.{i}.bias"]
        x = (x - teacher[f"head.mlp.{i + 1}.running_mean"]) / (teacher[f"head.mlp.{i + 1}.running_var"] + 1e-5).sqrt()
        if i != 6:
            x = x * teacher[f"head.mlp.{i + 1}.weight"] + teacher[f"head.mlp.{i + 1}.bias"]
        x = activation(x)
    torch.testing.assert_close(encoder.project(tokens), x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["ibot", "mugs", "mmc"])
def test_a_backbone_without_class_token_is_refused(family, tmp_path, monkeypatch):
    """SelfPatch's files have the same wrapper and no class token."""
    found = file(family, "training")
    backbone = {k: v for k, v in found.content["teacher"].items() if not k.endswith("cls_token")}
    found.content["teacher"] = backbone
    with pytest.raises(KeyMismatch, match=r"missing \(1\): cls_token"):
        loaded(family, found, tmp_path, monkeypatch)


def test_the_families_share_architectures_of_one_name():
    known = [adapters.module(name).ARCHITECTURES for name in ("dino", "ibot", "mugs", "mmc")]
    for name in ("vit_small_patch16", "vit_base_patch16"):
        assert len({family[name] for family in known}) == 1
