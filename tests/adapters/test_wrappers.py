"""Checkpoints as people have them: every wrapping is taken off by a rule that is told, to the same features as the bare file;
what stays open is asked for, and what no rule knows is refused."""

from __future__ import annotations

import argparse
import pathlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from evalkit import adapters
from evalkit.adapters import inspection, wrappers
from evalkit.adapters.dino import ARCHITECTURES
from evalkit.adapters.inspection import Wish
from evalkit.adapters.loading import Rule
from evalkit.adapters.positions import moco_v3
from evalkit.adapters.vit import VisionTransformer
from evalkit.errors import CheckpointError, KeyMismatch, UnsafeFile, UsageError
from evalkit.types import Manifest

ARCH = "vit_micro_patch8_64"
State = dict[str, Tensor]


def weights(seed: int = 0, arch: str = ARCH, size: int = 0) -> State:
    config = ARCHITECTURES[arch]
    config = config.at((size, size)) if size else config
    state = VisionTransformer(config).state_dict()
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g) * 0.05 + k.endswith("norm.weight") for k, v in state.items()}


NET, OTHER = weights(), weights(1)


def under(prefix: str, state: State = NET) -> State:
    return {prefix + key: value for key, value in state.items()}


def load(content: Any, folder: pathlib.Path, *, family: str = "dino", arch: str = ARCH, **asked: Any) -> Any:
    torch.save(content, folder / "file.pth")
    return adapters.load(Manifest("x", family, arch, **asked), folder / "file.pth")


def same(encoder: Any, state: State = NET) -> bool:
    return all(torch.equal(encoder.vit.state_dict()[key], value) for key, value in state.items())


LIGHTNING = {"epoch": 9, "pytorch-lightning_version": "2.2.0", "hyper_parameters": {"lr": 0.1}}
HEAD = {"head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}

WRAPPED: dict[str, tuple[Any, set[str]]] = {
    "bare": (NET, set()),
    "wrapped": ({"state_dict": NET}, {"Lightning's entry"}),
    "classifier": (NET | HEAD, set()),
    "lightning": (LIGHTNING | {"state_dict": under("model.")}, {"Lightning's entry", "attribute of the training class"}),
    "lightly": (
        LIGHTNING | {"state_dict": under("student_backbone.", OTHER) | under("teacher_backbone.")
                     | {"student_head.layers.0.weight": torch.zeros(3, 3), "criterion.center": torch.zeros(1, 3)}},
        {"the average of the other network"},
    ),
    "solo-learn": (
        {"state_dict": under("backbone.", OTHER) | under("momentum_backbone.") | {
            "classifier.weight": torch.zeros(10, 192), "classifier.bias": torch.zeros(10),
            "projector.0.weight": torch.zeros(3, 3), "momentum_projector.0.weight": torch.zeros(3, 3),
            "prototypes.weight_v": torch.zeros(3, 3), "queue": torch.zeros(3, 3)}},
        {"the average of the other network"},
    ),
    "compiled": ({"teacher": under("_orig_mod.backbone."), "student": under("_orig_mod.backbone.", OTHER)}, {"torch.compile"}),
    "compiled inside": ({"teacher": under("backbone._orig_mod.")}, {"torch.compile"}),
    "any order": (
        {"model": under("module._orig_mod.encoder.model.")},
        {"torch.compile", "DataParallel", "attribute of the training class"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapping_gives_the_network_inside_and_says_how(name: str, tmp_path: pathlib.Path) -> None:
    content, rules = WRAPPED[name]
    encoder = load(content, tmp_path)
    assert same(encoder)
    assert rules <= set(encoder.spec.audit["unwrapped"])


@pytest.mark.parametrize("name", ["lightly", "solo-learn"])
def test_the_other_of_two_networks_is_asked_for_by_its_name(name: str, tmp_path: pathlib.Path) -> None:
    encoder = load(WRAPPED[name][0], tmp_path, network="student")
    assert same(encoder, OTHER)
    assert encoder.spec.network == "student"


def test_what_lies_beside_a_network_is_dropped_by_rules(tmp_path: pathlib.Path) -> None:
    dropped = load(WRAPPED["solo-learn"][0], tmp_path).spec.audit["backbone"]["dropped"]
    assert set(dropped) == {"classifier", "projector", "state of the loss", "another network of the file"}
    assert len(dropped["another network of the file"]) == len(NET)


@pytest.mark.parametrize("key", ["extra.weight", "model.extra", "adapter.0.weight"])
def test_what_no_rule_knows_is_refused(key: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises((KeyMismatch, CheckpointError), match=r"unexpected|no weights"):
        load({"state_dict": under("model.") | {key: torch.zeros(3)}}, tmp_path)


def test_a_damaged_teacher_is_not_replaced_by_the_student(tmp_path: pathlib.Path) -> None:
    damaged = {key: value for key, value in NET.items() if key != "norm.weight"}
    state = under("teacher_backbone.", damaged) | under("student_backbone.", OTHER)
    with pytest.raises((KeyMismatch, CheckpointError)):
        load({"state_dict": state}, tmp_path)


def test_a_wrapping_that_nobody_knows_is_named_by_the_person(tmp_path: pathlib.Path) -> None:
    content = {"state_dict": under("my_net.")}
    with pytest.raises((KeyMismatch, CheckpointError)):
        load(content, tmp_path)
    for prefix in ("my_net", "my_net.", "state_dict.my_net."):
        assert same(load(content, tmp_path, prefix=prefix))
    with pytest.raises(
        CheckpointError, match=r"--prefix your_net: no network lies there; the file has: state_dict.my_net"
    ):
        load(content, tmp_path, prefix="your_net")
    seen = inspection.inspect(tmp_path / "file.pth", Wish(family="dino"))
    assert "--prefix state_dict.my_net." in str(inspection.undecided(seen))


@pytest.mark.parametrize(
    "content",
    [
        {"model": NET, "state_dict": {key: torch.zeros_like(value) for key, value in NET.items()}},
        {"state_dict": under("encoder.") | under("model.", OTHER)},
        {"state_dict": under("teacher.") | under("momentum.", OTHER)},
    ],
)
def test_two_networks_that_could_be_meant_are_asked_about(content: Any, tmp_path: pathlib.Path) -> None:
    for family in ("dino", "ibot", "mae", "timm"):
        with pytest.raises(CheckpointError, match=r"does not say which of them counts: choose one with --prefix"):
            load(content, tmp_path, family=family, arch=ARCH if family != "timm" else "vit_tiny_patch16_224")
    with pytest.raises(CheckpointError, match="--prefix"):
        inspection.identify(tmp_path / "file.pth", Wish(arch=ARCH))
    first = (
        next(iter(content))
        if len(content) > 1
        else "encoder"
        if "encoder.norm.weight" in content["state_dict"]
        else "teacher"
    )
    assert same(load(content, tmp_path, prefix=first))


def test_the_grid_of_a_square_table_is_read_off_it(tmp_path: pathlib.Path) -> None:
    encoder = load({"state_dict": weights(2, size=12)}, tmp_path)
    assert encoder.spec.grid == (12, 12)
    assert encoder.spec.preprocessing.size == 96
    assert encoder.spec.audit["grid"] == {"file": [12, 12], "architecture": [8, 8]}
    images = torch.randn(1, 3, 96, 96)
    table = encoder.vit.positions((12, 12), square=True)
    assert torch.equal(table.flatten(1, 2), encoder.vit.pos_embed[:, 1:])
    assert encoder.encode(images)[0].patches.shape == (1, 12, 12, 192)


def test_a_rectangle_has_to_be_told(tmp_path: pathlib.Path) -> None:
    state = weights()
    state["pos_embed"] = torch.randn(1, 1 + 6 * 12, 192)
    with pytest.raises(KeyMismatch, match="mis-shaped"):
        load(state, tmp_path)
    encoder = load(state, tmp_path, grid=(6, 12))
    assert encoder.spec.grid == (6, 12)
    assert torch.equal(encoder.vit.positions((6, 12), square=False).flatten(1, 2), state["pos_embed"][:, 1:])
    with pytest.raises(KeyMismatch, match="mis-shaped"):
        load(state, tmp_path, grid=(12, 12))
    with pytest.raises(UsageError, match="leave --grid out"):
        load(state, tmp_path, family="random", grid=(6, 12))


@pytest.mark.parametrize("path", [pathlib.PurePosixPath("/x/y"), pathlib.Path("runs"), pathlib.PureWindowsPath("c:/x")])
def test_paths_among_the_arguments_are_read_as_texts(path: pathlib.PurePath, tmp_path: pathlib.Path) -> None:
    content = {"teacher": under("backbone."), "args": argparse.Namespace(output_dir=path), "epoch": 3}
    assert same(load(content, tmp_path))
    assert type(adapters.read(tmp_path / "file.pth").state["args"].output_dir) is str


def test_nothing_else_of_pathlib_is_let_in(tmp_path: pathlib.Path) -> None:
    class Asks:
        def __init__(self, *call: Any) -> None:
            self.call = call

        def __reduce__(self) -> Any:
            return self.call

    for call in ((pathlib.Path.cwd, ()), (pathlib.PurePosixPath, (3,))):
        torch.save({"teacher": NET, "args": Asks(*call)}, tmp_path / "file.pth", pickle_module=pickle)
        with pytest.raises(UnsafeFile):
            adapters.read(tmp_path / "file.pth")


def test_mae_fine_tuned_on_the_mean_is_mae_and_nothing_else(tmp_path: pathlib.Path) -> None:
    state = {key: value for key, value in NET.items() if not key.startswith("norm.")}
    state |= {"fc_norm.weight": torch.rand(192), "fc_norm.bias": torch.rand(192)}
    encoder = load({"model": state | HEAD}, tmp_path, family="mae")
    assert inspection.identify(tmp_path / "file.pth", Wish()).family == "mae"
    images = torch.randn(2, 3, 64, 64)
    (tokens,), (raw,) = encoder.encode(images), encoder.encode(images, norm=False)
    expected = torch.nn.functional.layer_norm(
        raw.patches.mean((1, 2)), (192,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6
    )
    torch.testing.assert_close(tokens.cls, expected)
    assert torch.equal(tokens.patches, raw.patches)
    for family in ("ibot", "dino", "beit"):
        with pytest.raises(KeyMismatch):
            load(
                {"model": state | HEAD}, tmp_path, family=family, arch=ARCH if family != "beit" else "vit_base_patch16"
            )


def test_advice_gives_only_the_same_numbers(tmp_path: pathlib.Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.zeros(3)}}, tmp_path / "file.pth")
    text = str(inspection.undecided(inspection.inspect(tmp_path / "file.pth")))
    assert "Any vision transformer of timm" not in text
    assert "other numbers" in text


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "every weight in the file is 0"), (1e31, "values past 1e"), (float("inf"), "infinite")]
)
def test_weights_that_no_training_leaves_are_refused(value: float, words: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        load({key: torch.full_like(tensor, value) for key, tensor in NET.items()}, tmp_path)


TWO = {"state_dict": under("a.") | under("b.", OTHER)}


def test_two_prefixes_of_one_file_are_two_networks(tmp_path: pathlib.Path) -> None:
    """Else the second would be given the features and the record of the first."""
    one, other = load(TWO, tmp_path, prefix="a"), load(TWO, tmp_path, prefix="b")
    assert same(one)
    assert same(other, OTHER)
    assert (one.spec.network, other.spec.network) == ("state_dict.a", "state_dict.b")
    assert one.spec.audit["asked"] == {"network": "", "prefix": "a", "grid": []}


def test_two_grids_of_one_file_are_two_networks(tmp_path: pathlib.Path) -> None:
    state = NET | {"pos_embed": torch.randn(1, 1 + 6 * 12, 192)}
    tall, wide = load(state, tmp_path, grid=(12, 6)), load(state, tmp_path, grid=(6, 12))
    assert tall.spec.preprocessing == wide.spec.preprocessing
    assert (tall.spec.network, wide.spec.network) == ("backbone 12x6", "backbone 6x12")


@pytest.mark.parametrize("prefix", ["", "teacher_backbone"])
def test_a_network_that_the_family_does_not_have_is_refused(prefix: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"network .bogus.|leave --network out"):
        load(WRAPPED["lightly"][0], tmp_path, network="bogus", prefix=prefix)


def test_the_only_network_is_not_taken_for_the_one_that_is_missing(tmp_path: pathlib.Path) -> None:
    content = {"state_dict": under("student_backbone.")}
    with pytest.raises(CheckpointError, match="and no 'teacher': name it by --network student"):
        load(content, tmp_path)
    assert same(load(content, tmp_path, network="student"))


@pytest.mark.parametrize(
    "content",
    [
        {"target_encoder": under("module."), "encoder": under("module.", OTHER), "prototypes": torch.zeros(3)},  # MSN
        {"state_dict": under("module.base_encoder.") | under("module.momentum_encoder.", OTHER)},  # MoCo v3
    ],
)
def test_another_family_s_own_files_are_not_taken_for_wrapped_ones(content: Any, tmp_path: pathlib.Path) -> None:
    """They have the same keys and other heads, or resize positions in another way."""
    with pytest.raises(CheckpointError, match="says whether another family's do"):
        load(content, tmp_path)


def test_an_entry_of_an_unknown_name_beside_the_family_s_own_is_asked_about(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"under 'model\.' and 'model_best\.'.*--prefix model\."):
        load({"model": NET, "model_best": OTHER}, tmp_path, family="mae")


MORE: dict[str, Any] = {
    "lightly, momentum": {
        "state_dict": under("backbone.", OTHER)
        | under("backbone_momentum.")
        | {"projection_head_momentum.layers.0.weight": torch.zeros(2)}
    },
    "solo-learn, DINO": {
        "state_dict": under("backbone.", OTHER)
        | under("momentum_backbone.")
        | {
            "dino_loss_func.center": torch.zeros(2),
            "queue_y": torch.zeros(2),
            "head.mlp.0.weight": torch.zeros(2),
            "momentum_head.mlp.0.weight": torch.zeros(2),
        }
    },
    "fully sharded": {"model": under("_fsdp_wrapped_module.")},
    "one block compiled": {
        "model": {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in NET.items()}
    },
}


@pytest.mark.parametrize("name", MORE)
def test_more_frameworks(name: str, tmp_path: pathlib.Path) -> None:
    assert same(load(MORE[name], tmp_path))


def test_two_keys_that_would_meet_stay_apart(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyMismatch, match="_orig_mod"):
        load(NET | {"_orig_mod.norm.weight": torch.zeros(192)}, tmp_path)


@pytest.mark.parametrize("family", ["moco_v3", "mgc"])
@pytest.mark.parametrize("grid", [(12, 12), (6, 24)])
def test_a_fixed_table_is_checked_at_the_grid_of_the_file(
    family: str, grid: tuple[int, int], tmp_path: pathlib.Path
) -> None:
    table = moco_v3(torch.zeros(1, *grid, 192), grid).flatten(1, 2)
    state = NET | {"pos_embed": torch.cat([torch.zeros(1, 1, 192), table], 1)}
    told = {} if grid == (12, 12) else {"grid": grid}
    assert load(state, tmp_path, family=family, **told).spec.grid == grid
    state["pos_embed"] = state["pos_embed"] + 0.1
    with pytest.raises(CheckpointError, match="its position table"):
        load(state, tmp_path, family=family, **told)


def test_a_grid_is_refused_where_there_is_no_table(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="no table of positions: leave --grid out"):
        load(NET, tmp_path, family="dinov3", arch="vit_small_patch16", grid=(6, 12))


def test_many_networks_are_no_checkpoint(tmp_path: pathlib.Path) -> None:
    state = {f"a{i}.patch_embed.proj.weight": torch.zeros(1) for i in range(wrappers.MOST + 1)}
    with pytest.raises(CheckpointError, match="holds 65 networks"):
        load(state, tmp_path)


def test_every_key_is_looked_at_a_bounded_number_of_times(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Twice as many keys that nothing knows are twice as much work: rules are asked so often, and no more."""
    asked = []
    plain = Rule.covers
    monkeypatch.setattr(Rule, "covers", lambda rule, key: asked.append(key) or plain(rule, key))
    counts = []
    for number in (100, 200):
        asked.clear()
        with pytest.raises(CheckpointError):
            load({f"k{i}": torch.zeros(1) for i in range(number)}, tmp_path)
        counts.append(len(asked))
    assert counts[1] <= 2 * counts[0]
