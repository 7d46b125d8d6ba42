"""Any vision transformer of timm by its name, with weights from a state-dict file (timm 1.0.31,
models/vision_transformer.py).

The model is timm's own, so resizing of the position embedding, registers and LayerScale are as timm has them. Nothing
is downloaded. `norm=True` applies the model's `norm`; models that pool first and norm after (`fc_norm`) have none
there, and their tokens come as the last block leaves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import timm
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evalkit.adapters import loading, specs, wrappers
from evalkit.adapters.encoder import resolve_block
from evalkit.adapters.files import RawCheckpoint
from evalkit.errors import FeatureError, NoProjection, UnknownName, Unsupported, UsageError
from evalkit.types import Encoder, EncoderSpec, Manifest, Need, Preprocessing, Tokens

VERSION = 1
NEEDS_FILE = True
MODULES = ("vision_transformer", "deit")
ARCHITECTURES = tuple(timm.list_models(module=MODULES))
WRAPPERS = {"": ("state_dict", "model"), "ema": ("state_dict_ema", "model_ema")}
RULES = (
    loading.Rule("classifier", "the supervised head is no part of the frozen encoder", r"head(_dist)?\.(weight|bias)"),
)


class TimmEncoder(nn.Module):
    """The `Encoder` contract over a timm vision transformer: frozen, in evaluation mode."""

    def __init__(self, model: Any, spec: EncoderSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.eval().requires_grad_(False)

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
    if manifest.network not in WRAPPERS:
        raise UsageError(
            f"network {manifest.network!r}: timm's files have the trained weights (leave it out) and 'ema'"
        )
    model = create(manifest.arch)
    network, words = _network(manifest, raw, model.state_dict())
    audit = loading.assign(model, network.state, RULES, what=manifest.arch)
    facts = specs.opened(raw, network.name, network.beside) | {"unwrapped": dict(words), "backbone": audit.facts()}
    return TimmEncoder(model, _spec(manifest, model, raw.sha256, facts))


def _network(
    manifest: Manifest, raw: RawCheckpoint, expected: Mapping[str, Tensor]
) -> tuple[loading.Network, Mapping[str, int]]:
    """The network, and {rule: keys that it took a word off}: as timm writes files, or without the wrapping of a training
    framework (`wrappers`) where only that fits. Raises CheckpointError."""
    plain, compiled = wrappers.uncompiled(raw)
    if not manifest.prefix:
        wrappers.check_single(plain, frozenset({"model", "model_ema"}))
    role = "average" if manifest.network == "ema" else "trained"
    for wrapped in wrappers.unwrap(plain, manifest.prefix):
        fits = not wrapped.unexpected and loading.compare(expected, wrapped.state, RULES).clean
        if manifest.prefix or (fits and wrapped.role in ("", role)):
            return loading.Network(wrapped.state, wrapped.path.rstrip(".")), {**compiled, **wrapped.words}
    network = loading.unwrap(plain, WRAPPERS[manifest.network])
    return replace(network, state=loading.strip(network.state, "module.")), compiled


def create(arch: str) -> Any:
    """timm's model without its classifier, taking any image size; with random weights, nothing is fetched.

    Raises UnknownName where timm lacks it, Unsupported where it is no plain vision transformer.
    """
    if not timm.is_model(arch):
        raise UnknownName("timm architecture", arch, ARCHITECTURES)
    if arch.split(".")[0] not in ARCHITECTURES:
        raise Unsupported(f"timm's {arch} is no plain vision transformer; allowed are those of {' and '.join(MODULES)}")
    model: Any = specs.build(lambda: timm.create_model(arch, pretrained=False, num_classes=0, dynamic_img_size=True))
    sides = model.patch_embed.patch_size
    if not isinstance(model, VisionTransformer) or sides[0] != sides[1]:
        raise Unsupported(f"timm's {arch} is no plain vision transformer with square patches")
    return model


def _spec(manifest: Manifest, model: Any, digest: str, audit: dict[str, Any]) -> EncoderSpec:
    attention = getattr(model.blocks[-1], "attn", None)
    offers: set[Need] = {"patches", "blocks"}
    offers |= {"cls"} if model.has_class_token else set()
    offers |= {"attention"} if type(attention) is Attention else set()
    h, w = model.patch_embed.grid_size
    return EncoderSpec(
        id=manifest.id,
        family=manifest.family,
        arch=manifest.arch,
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=getattr(attention, "num_heads", 0),
        patch=model.patch_embed.patch_size[0],
        grid=(h, w),
        preprocessing=_preprocessing(manifest, model),
        network=manifest.network or "backbone",
        digest=digest,
        adapter_version=VERSION,
        offers=frozenset(offers),
        parameters=specs.count(model),
        audit=audit,
    )


def _preprocessing(manifest: Manifest, model: Any) -> Preprocessing:
    if manifest.preprocessing != Preprocessing():
        return manifest.preprocessing
    config = model.pretrained_cfg
    return Preprocessing(
        size=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source=f"timm {timm.__version__}, pretrained_cfg of {manifest.arch}",
    )
