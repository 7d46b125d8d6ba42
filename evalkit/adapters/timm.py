"""Any vision transformer of timm by its name, with weights from a state-dict file (timm 1.0.31,
models/vision_transformer.py).

The model is timm's own, so resizing of the position embedding, registers and LayerScale are as timm has them. Nothing
is downloaded. `norm=True` applies the model's `norm`; models that pool first and norm after (`fc_norm`) have none
there, and their tokens come as the last block leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evalkit.adapters import loading, specs
from evalkit.adapters.encoder import resolve_block
from evalkit.adapters.family import Layout, Parts, Place, readings
from evalkit.adapters.files import RawCheckpoint
from evalkit.errors import CheckpointError, FeatureError, NoProjection, UnknownName, Unsupported, UsageError
from evalkit.types import Encoder, EncoderSpec, Manifest, Need, Preprocessing, Tokens

VERSION = 1
NEEDS_FILE = True
READS_GRID = True
MODULES = ("vision_transformer", "deit")
ARCHITECTURES = tuple(timm.list_models(module=MODULES))
LAYOUT = Layout(
    networks={
        "backbone": (Place("state_dict"), Place("model")),
        "ema": (Place("state_dict_ema"), Place("model_ema")),
    },
    drop=(
        loading.Rule(
            "classifier", "the supervised head is no part of the frozen encoder", r"head(_dist)?\.(weight|bias)"
        ),
    ),
)


class TimmEncoder(nn.Module):
    """The `Encoder` contract over a timm vision transformer: frozen, in evaluation mode."""

    def __init__(self, model: Any, spec: EncoderSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.eval().requires_grad_(False)

    def untrained(self, spec: EncoderSpec, generator: torch.Generator) -> TimmEncoder:
        """The same model with the weights that timm itself starts with. spec: of the new encoder."""
        return TimmEncoder(create(self.spec.arch, generator.initial_seed(), self.spec.grid), spec)

    def encode(
        self, images: Tensor, blocks: Sequence[int] = (-1,), norm: bool | Sequence[bool] = True
    ) -> tuple[Tokens, ...]:
        """See `evalkit.types.Encoder`."""
        grid = self._grid(images)
        numbers = [resolve_block(block, self.spec.depth) for block in blocks]
        flags = [norm] * len(numbers) if isinstance(norm, bool) else list(norm)
        wanted = sorted(set(numbers))
        outputs = self.model.forward_intermediates(
            images,
            indices=wanted,
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        found = dict(zip(wanted, outputs, strict=True))
        return tuple(self._tokens(found[n], grid, flag) for n, flag in zip(numbers, flags, strict=True))

    def _tokens(self, output: Any, grid: tuple[int, int], norm: bool) -> Tokens:
        final = self.model.norm if norm else nn.Identity()
        patches, prefix = output if self.model.num_prefix_tokens else (output, None)
        cls = final(prefix[:, 0]) if self.model.has_class_token and prefix is not None else None
        return Tokens(cls=cls, patches=final(patches).unflatten(1, grid))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.spec.patch or width % self.spec.patch or not height or not width:
            raise FeatureError(f"image size {height} x {width} is not a multiple of the patch size {self.spec.patch}")
        return height // self.spec.patch, width // self.spec.patch

    def project(self, tokens: Tokens, at: Literal["output", "bottleneck"] = "output") -> Tensor:
        """Raises NoProjection: timm's files hold no pretraining head."""
        raise NoProjection(f"{self.spec.id}: timm's files hold no pretraining head")

    def attention(self, images: Tensor, queries: Sequence[str | int] = ("cls",)) -> Tensor:
        """See `evalkit.types.Encoder`."""
        if "attention" not in self.spec.offers:
            raise Unsupported(f"{self.spec.id}: the last block of {self.spec.arch} has no plain attention")
        if "cls" in queries and not self.model.has_class_token:
            raise Unsupported(f"{self.spec.id}: the network has no class token to look from")
        self._grid(images)
        rows = [0 if q == "cls" else self.model.num_prefix_tokens + int(q) for q in queries]
        attention: Any = self.model.blocks[-1].attn
        return _rows(attention, self._seen(attention, images), rows)

    def _seen(self, attention: nn.Module, images: Tensor) -> Tensor:
        """What the last attention is given, caught on its way: blocks differ in what they do before it."""
        caught: list[Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        try:
            self.model.forward_features(images)
        finally:
            hook.remove()
        return caught[0]


def _rows(attention: Any, x: Tensor, rows: list[int]) -> Tensor:
    """(B, heads, Q, T) softmax rows of the tokens `rows` alone."""
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(qkv[0][:, :, rows]), attention.k_norm(qkv[1])
    scores: Tensor = q @ k.transpose(-2, -1) * attention.scale
    return scores.softmax(-1)


def load(manifest: Manifest, raw: RawCheckpoint) -> Encoder:
    """The encoder in a file.

    Raises UnknownName for a name that timm lacks, Unsupported for a model that is no plain vision transformer,
    KeyMismatch and CheckpointError as `loading` does, UsageError for a network other than "" or "ema".
    """
    if manifest.network not in ("", *LAYOUT.networks):
        raise UsageError(
            f"network {manifest.network!r}: timm's files have the trained weights (leave it out) and 'ema'"
        )
    model = create(manifest.arch)
    parts = _reading(manifest, raw, model.state_dict())
    if grid := _grid_of(manifest, model, parts.backbone):
        model = create(manifest.arch, grid=grid)
    audit = loading.assign(
        model, {**parts.backbone, **dict.fromkeys(parts.unexpected, torch.empty(0))}, what=manifest.arch
    )
    facts = specs.opened(raw, parts.entry, parts.beside) | {"unwrapped": dict(parts.unwrapped)} | specs.asked(manifest)
    facts["backbone"] = audit.facts() | {"dropped": {name: list(keys) for name, keys in parts.dropped.items()}}
    network = specs.told(parts.network, parts.entry, manifest)
    return TimmEncoder(model, _spec(manifest, model, specs.Origin(network, VERSION, raw.sha256, audit=facts)))


def _reading(manifest: Manifest, raw: RawCheckpoint, expected: Mapping[str, Tensor]) -> Parts:
    """The first of the `readings` whose keys are the model's, else the first. Raises as `family.readings`."""
    first: Parts | None = None
    for parts in readings(LAYOUT, raw, manifest.network, manifest.prefix):
        if not parts.unexpected and parts.backbone.keys() == expected.keys():
            return parts
        first = first or parts
    if first is None:
        raise CheckpointError(f"{raw.path} holds no network that evalkit knows")
    return first


def _grid_of(manifest: Manifest, model: Any, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(h, w) of the file's position table where it is not the model's: as the person says, or a square's sides.

    Raises UsageError where there is no table to have a grid.
    """
    native, table = tuple(model.patch_embed.grid_size), getattr(model, "pos_embed", None)
    if table is None:
        if manifest.grid:
            raise UsageError(f"timm's {manifest.arch} has no table of positions: leave --grid out")
        return None
    if manifest.grid:
        return manifest.grid
    came = state.get("pos_embed")
    if came is None or came.ndim != 3 or came.shape == table.shape:
        return None
    rows = came.shape[1] - (table.shape[1] - math.prod(native))
    side = math.isqrt(max(rows, 0))
    return (side, side) if side and side**2 == rows else None


def create(arch: str, seed: int | None = None, grid: tuple[int, int] | None = None) -> Any:
    """timm's model without its classifier, taking any image size; with random weights, nothing is fetched.

    seed: of the weights, None for any. grid: (h, w) patches of its position table, None for the name's own.
    Raises UnknownName where timm lacks it, Unsupported where it is no plain vision transformer.
    """
    if not timm.is_model(arch):
        raise UnknownName("timm architecture", arch, ARCHITECTURES)
    if arch.split(".")[0] not in ARCHITECTURES:
        raise Unsupported(f"timm's {arch} is no plain vision transformer; allowed are those of {' and '.join(MODULES)}")

    def make(**size: Any) -> Any:
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # timm draws from it; specs.build restores it
        return timm.create_model(arch, pretrained=False, num_classes=0, dynamic_img_size=True, **size)

    model: Any = specs.build(make)
    sides = model.patch_embed.patch_size
    if grid is not None and isinstance(model, VisionTransformer):
        size = (grid[0] * sides[0], grid[1] * sides[1])
        model = specs.build(lambda: make(img_size=size))
    if not isinstance(model, VisionTransformer) or sides[0] != sides[1]:
        raise Unsupported(f"timm's {arch} is no plain vision transformer with square patches")
    return model


def _spec(manifest: Manifest, model: Any, origin: specs.Origin) -> EncoderSpec:
    attention = getattr(model.blocks[-1], "attn", None)
    offers: set[Need] = {"patches", "blocks"}
    offers |= {"cls"} if model.has_class_token else set()
    offers |= {"attention"} if type(attention) is Attention else set()
    h, w = model.patch_embed.grid_size
    fed = _stated(manifest.arch, model)
    return EncoderSpec(
        id=manifest.id,
        family=manifest.family,
        arch=manifest.arch,
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=getattr(attention, "num_heads", 0),
        patch=model.patch_embed.patch_size[0],
        grid=(h, w),
        preprocessing=manifest.preprocessing if manifest.preprocessing != Preprocessing() else fed,
        network=origin.network,
        digest=origin.digest,
        adapter_version=origin.version,
        offers=frozenset(offers),
        parameters=specs.count(model),
        audit=origin.audit,
        built={"timm": manifest.arch, "size": fed.size, "mean": fed.mean, "std": fed.std}
        | ({} if (h, w) == _native(model) else {"grid": [h, w]}),
    )


def _native(model: Any) -> tuple[int, int]:
    """(h, w) of the position table that goes with the name."""
    side = int(model.pretrained_cfg["input_size"][-1]) // model.patch_embed.patch_size[0]
    return side, side


def _stated(arch: str, model: Any) -> Preprocessing:
    config, grid, patch = model.pretrained_cfg, model.patch_embed.grid_size, model.patch_embed.patch_size[0]
    side = int(config["input_size"][-1]) if tuple(grid) == _native(model) else min(grid) * patch
    return Preprocessing(
        size=side,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source=f"timm {timm.__version__}, pretrained_cfg of {arch}",
    )
