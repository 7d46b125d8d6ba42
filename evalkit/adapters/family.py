"""What a family of checkpoints has to say so that its files load exactly: where its networks lie in a file, how its keys
are called, what may be left out and why, and its architectures on the shared transformer.

    ARCHITECTURES = {"vit_small_patch16": ViTConfig(dim=384, depth=12, heads=6, patch=16)}
    FAMILY = ViTFamily(
        version=1,
        layout=Layout(networks={"teacher": (Place("teacher"),), "student": (Place("student"),)}, backbone="backbone."),
        architectures=ARCHITECTURES,
        source="owner/repository commit, file: ImageNet mean and std",
    )
    load = FAMILY.load

`docs/add-a-family.md` builds one. A family on another network (timm, the controls) writes `load` itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.adapters import loading, specs, wrappers
from evalkit.adapters.encoder import ViTEncoder
from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Audit, Rule, State
from evalkit.adapters.mismatch import explain
from evalkit.adapters.vit import VisionTransformer, ViTConfig
from evalkit.errors import CheckpointError, KeyMismatch, UsageError
from evalkit.types import IMAGENET_MEAN, IMAGENET_STD, Encoder, Manifest, Preprocessing

BARE = "backbone"
"""The network's name where a file holds one network and does not say which."""


CLASSIFIER = Rule(
    "classifier", "trained with labels, beside or on top of the network", r"(head|fc|classifier)\.(weight|bias)"
)
"""A single layer that scores classes; no family has a pretraining head of these keys."""


@dataclass(frozen=True)
class Place:
    """Where a network may lie. entry: of the file's top level, "" for the top level itself. prefix: its keys begin with
    it; keys that do not belong to another network or to nothing."""

    entry: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Layout:
    """How a family's files are laid out.

    networks: {name: places, in the order tried}; the first name is the one that the papers evaluate.
    entries: of the top level that hold one network without saying which (the top level itself always may).
    backbone, head: prefixes of the encoder's and of the pretraining head's keys inside a network; where no key begins
    with `backbone`, every key that is not the head's is the encoder's.
    prepare: the network's whole state -> the same with the prefixes below, where files differ in how they say it.
    rename: the encoder's state in the file's names -> in the shared transformer's.
    drop: rules for keys left out; they match the whole key inside the prepared network, before renaming.
    outside: rules for keys of the entry that lie outside the network's prefix (other networks, predictors).
    signs: regular expressions of entries or whole keys that prove a file to be this family's where others fit it too.
    """

    networks: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    entries: tuple[str, ...] = ()
    backbone: str = ""
    head: str = ""
    prepare: Callable[[State], State] = dict
    rename: Callable[[State], State] = dict
    drop: tuple[Rule, ...] = ()
    outside: tuple[Rule, ...] = ()
    signs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """One network of a file, taken apart. network: its name. entry: where it lay. beside: the file's other entries.
    backbone: in the shared transformer's names. dropped: {rule: keys}. unexpected: keys that no rule covers.
    unwrapped: {rule of `wrappers`: keys that it took a word off}."""

    network: str
    entry: str
    beside: tuple[str, ...]
    backbone: State
    head: State
    dropped: Mapping[str, tuple[str, ...]]
    unexpected: tuple[str, ...]
    unwrapped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How one architecture of a family meets one network of a file."""

    arch: str
    config: ViTConfig
    parts: Parts
    audit: Audit


def no_head(state: State, config: ViTConfig) -> nn.Module:
    """For families whose head evalkit does not read. Raises KeyMismatch."""
    raise KeyMismatch(f"a head that this family does not have: {', '.join(sorted(state)[:6])}")


def as_it_is(config: ViTConfig, backbone: State) -> ViTConfig:
    """The architecture whatever the file holds."""
    return config


@dataclass(frozen=True)
class ViTFamily:
    """A family on the shared transformer.

    version: raised when its numbers change. source: of the preprocessing. adapt: the architecture as a file's keys ask
    for it (LayerScale present or not); it must decide by keys, never by shapes that could be a mistake. head: makes the
    empty pretraining head for its state. encoder: what wraps the network. preprocessing: where it is not ImageNet's mean
    and std at the native size. start: what its pretraining changes of `VisionTransformer.initialise`.
    sized: the file states its size itself, so that a table of another one is a mistake.
    """

    version: int
    layout: Layout
    architectures: Mapping[str, ViTConfig]
    source: str
    adapt: Callable[[ViTConfig, State], ViTConfig] = as_it_is
    head: Callable[[State, ViTConfig], nn.Module] = no_head
    encoder: Callable[..., ViTEncoder] = ViTEncoder
    preprocessing: Callable[[ViTConfig], Preprocessing] | None = None
    start: Callable[[VisionTransformer, torch.Generator], None] | None = None
    sized: bool = False

    def load(self, manifest: Manifest, raw: RawCheckpoint) -> Encoder:
        """The encoder in a file, with its head where the file has one.

        Raises KeyMismatch, CheckpointError (see `loading`), UsageError for a network that the family does not have.
        """
        fit = self._fitting(manifest, raw)
        parts, config = fit.parts, fit.config
        vit = specs.build(lambda: VisionTransformer(config))
        audit = specs.opened(raw, parts.entry, parts.beside)
        audit["unwrapped"] = dict(parts.unwrapped)
        audit |= specs.asked(manifest)
        if config.grid != (named := self.adapt(self.architectures[manifest.arch], parts.backbone).grid):
            audit["grid"] = {"file": list(config.grid), "architecture": list(named)}
        audit["backbone"] = loading.assign(vit, parts.backbone, what=manifest.arch).facts()
        audit["backbone"]["dropped"] = {name: list(keys) for name, keys in parts.dropped.items()}
        head = None
        if parts.head:
            head = specs.build(lambda: self.head(parts.head, config))
            audit["head"] = loading.assign(head, parts.head, what="the pretraining head").facts()
        network = specs.told(parts.network, parts.entry, manifest)
        origin = specs.Origin(network, self.version, raw.sha256, audit=audit)
        return self.encoder(vit, self.spec(manifest, config, origin, vit, projects=head is not None), head)

    def _fitting(self, manifest: Manifest, raw: RawCheckpoint) -> Fit:
        """Before memory is taken for the network: the reading of the file that is this architecture.

        Raises KeyMismatch, with what differs from the reading as the family's own code writes files, where none is.
        """
        first: Fit | None = None
        for parts in readings(self.layout, raw, manifest.network, manifest.prefix):
            config = self._config(manifest.arch, parts.backbone, manifest.grid)
            with torch.device("meta"):
                vit = VisionTransformer(config)
            fit = Fit(manifest.arch, config, parts, self._audit(parts, vit))
            if fit.audit.clean:
                return fit
            first = first or fit
        if first is None:
            raise CheckpointError(f"{raw.path} holds no network that evalkit knows")
        with torch.device("meta"):
            expected = VisionTransformer(first.config).state_dict()
        raise KeyMismatch(explain(manifest.arch, first.audit, expected))

    def _config(self, arch: str, backbone: State, grid: tuple[int, int] | None) -> ViTConfig:
        """The architecture at the grid that the person names, else at the square that the position table shows, where none
        of the family's names means just that."""
        config = self.adapt(self.architectures[arch], backbone)
        if grid and not (config.positions or config.relative):
            raise UsageError(f"{arch} has no table of positions: leave --grid out")
        if grid is None and not self.sized and (side := _square(config, backbone)):
            grid = (side, side)
        if grid is None or grid == config.grid:
            return config
        other = config.at(grid)
        named = (self.adapt(known, backbone) for known in self.architectures.values())
        return config if other in named else other

    def spec(
        self, manifest: Manifest, config: ViTConfig, origin: specs.Origin, vit: nn.Module, *, projects: bool
    ) -> Any:
        """The `EncoderSpec`, with the family's preprocessing where the manifest states none."""
        if self.preprocessing and manifest.preprocessing == Preprocessing():
            manifest = replace(manifest, preprocessing=self.preprocessing(config))
        return specs.vit_spec(
            manifest, config, origin, parameters=specs.count(vit), projects=projects, source=self.source
        )

    def fits(self, raw: RawCheckpoint, *, prefix: str = "", grid: tuple[int, int] | None = None) -> Iterator[Fit]:
        """Each network of the file beside each architecture of its width and depth; nothing is loaded.

        An architecture whose `audit` is clean is one that the file can be. Of a network only the readings without a
        difference count, where there are some. Raises CheckpointError where the file holds networks and does not say
        which of them counts.
        """
        for name in self.layout.networks or ("",):
            found: list[Fit] = []
            wanted = "" if name == next(iter(self.layout.networks), "") else name
            for parts in self._readings(raw, wanted, prefix):
                found += self._beside(parts, grid)
                if any(fit.audit.clean for fit in found):
                    break
            clean = [fit for fit in found if fit.audit.clean]
            yield from clean or found

    def _readings(self, raw: RawCheckpoint, wanted: str, prefix: str) -> Iterator[Parts]:
        """As `readings`; where the file has no such network there are none."""
        try:
            yield from readings(self.layout, raw, wanted, prefix)
        except wrappers.Ambiguous:
            raise
        except (CheckpointError, UsageError):
            return

    def _beside(self, parts: Parts, grid: tuple[int, int] | None) -> Iterator[Fit]:
        for arch in self.architectures:
            native = self.adapt(self.architectures[arch], parts.backbone)
            if grid and not (native.positions or native.relative):
                continue
            config = self._config(arch, parts.backbone, grid)
            if _measures(parts.backbone) == (config.dim, config.depth):
                with torch.device("meta"):
                    vit = VisionTransformer(config)
                yield Fit(arch, config, parts, self._audit(parts, vit))

    def _audit(self, parts: Parts, vit: nn.Module) -> Audit:
        audit = loading.compare(vit.state_dict(), parts.backbone)
        return replace(audit, dropped=parts.dropped, unexpected=audit.unexpected + parts.unexpected)


def _measures(backbone: State) -> tuple[int, int]:
    """(width, number of blocks) that the keys speak of; zeros where they speak of none."""
    patch = backbone.get("patch_embed.proj.weight", torch.empty(0))
    blocks = {key.split(".")[1] for key in backbone if key.startswith("blocks.")}
    return (patch.shape[0] if patch.ndim == 4 else 0), len(blocks)


def _square(config: ViTConfig, backbone: State) -> int:
    """Patches a side of the square that the file's position table has rows for; 0 where it has no such table."""
    table = backbone.get("pos_embed")
    if config.positions and table is not None and table.ndim == 3:
        rows = table.shape[1] - config.prefix_rows
        return side if (side := math.isqrt(max(rows, 0))) ** 2 == rows else 0
    relative = [v for key, v in backbone.items() if key.endswith("relative_position_bias_table") and v.ndim == 2]
    if config.relative and relative:  # (2 h - 1)^2 distances, and three for the class token
        distances = math.isqrt(max(relative[0].shape[0] - 3, 0))
        return (distances + 1) // 2 if distances % 2 and distances**2 == relative[0].shape[0] - 3 else 0
    return 0


def readings(layout: Layout, raw: RawCheckpoint, wanted: str = "", prefix: str = "") -> Iterator[Parts]:
    """The ways to read the network that is wanted: as the family's own code writes files, then without the wrapping of a
    training framework. Whoever asks takes the first that fits.

    prefix: the network's keys begin with it; then there is no other reading. Raises as `take` where the first way does
    not work and no other is left, and Ambiguous where several networks are alike and nothing says which counts.
    """
    plain, inside = wrappers.uncompiled(raw)
    if prefix:
        if wanted:
            raise UsageError(f"--prefix {prefix[:80]} names one network of the file: leave --network out")
        yield from (_unwrapped(layout, plain, wrapped, "", inside) for wrapped in wrappers.unwrap(plain, prefix))
        return
    entries = frozenset(place.entry for name in layout.networks for place in layout.networks[name][:1])
    wrappers.check_single(plain, entries if len(entries) > 1 else frozenset())
    try:
        parts = take(layout, plain, wanted)
    except CheckpointError:
        own = _held(layout, plain)  # the family's own file, without this network: no wrapping hides it
        found = [] if own else wrappers.unwrap(plain)
        if (wrapped := _wanted(layout, plain, found, wanted)) is None:
            raise
        yield _unwrapped(layout, plain, wrapped, wanted, inside)
        return
    mark = parts.backbone.get(wrappers.MARK)
    around = {} if mark is None else wrappers.around(plain, mark, len(parts.backbone))
    yield replace(parts, unwrapped={**inside, **around})
    if mark is not None and not any(key.endswith(wrappers.MARK) for key in parts.unexpected):
        return  # the family's own file: what does not fit there is a fault, and no wrapping
    try:
        wrapped = _wanted(layout, plain, wrappers.unwrap(plain), wanted)
    except CheckpointError:
        if mark is None:
            raise
        return
    if wrapped is not None:
        yield _unwrapped(layout, plain, wrapped, wanted, inside)


AVERAGES = ("teacher", "momentum", "target", "model_ema", "ema")
"""What families call the average of the network that is trained by gradients."""


def _role(name: str) -> wrappers.Role:
    return "average" if name.startswith(AVERAGES) else "trained"


def _wanted(layout: Layout, raw: RawCheckpoint, found: list[wrappers.Wrapped], wanted: str) -> wrappers.Wrapped | None:
    """Of the networks in a file the one that is asked for: of two, what the family calls its average or the other; of a
    family that has no names for two, the average. Raises CheckpointError where the file says that it holds only the other.
    """
    if not found or not layout.networks:
        return next(iter(found), None)
    first = next(iter(layout.networks))
    name = first if wanted in ("", BARE) else wanted
    if len(found) == 1 and not found[0].role:
        return found[0] if name == first else None
    if name != next(known for known in layout.networks if _role(known) == _role(name)):
        return None  # a third network, of which frameworks know nothing
    meant = next((wrapped for wrapped in found if wrapped.role == _role(name)), None)
    if meant is None:
        other = next((known for known in layout.networks if _role(known) != _role(name)), "")
        hint = f"name it by --network {other}" if other else f"name it by --prefix {found[0].path}"
        raise CheckpointError(f"{raw.path} holds a network under {found[0].path!r} and no {name!r}: {hint}")
    return meant


def _unwrapped(
    layout: Layout, raw: RawCheckpoint, wrapped: wrappers.Wrapped, wanted: str, inside: Mapping[str, int]
) -> Parts:
    """inside: what `wrappers.uncompiled` took off."""
    named = bool(wrapped.role) and bool(layout.networks)
    name = wanted or (next(iter(layout.networks)) if named else BARE)
    parts = _parts(layout, raw, Place(), (wrapped.state, {}), name)
    entry = wrapped.path.split(".")[0]
    return replace(
        parts,
        entry=wrapped.path.rstrip("."),
        beside=tuple(str(key) for key in raw.state if key != entry) if entry in raw.state else (),
        dropped={**parts.dropped, **wrapped.dropped},
        unexpected=(*parts.unexpected, *wrapped.unexpected),
        unwrapped={**inside, **wrapped.words},
    )


def take(layout: Layout, raw: RawCheckpoint, wanted: str = "") -> Parts:
    """The network that is wanted ("" for the family's default), taken apart by the layout.

    Raises UsageError for a network that the family does not have; CheckpointError where the file lacks it, or holds one
    network without saying which while another than the default is wanted.
    """
    if wanted and wanted not in layout.networks and wanted != BARE:
        known = ", ".join(layout.networks) or "one network without a name"
        raise UsageError(f"network {wanted!r}: the files of this family have {known}")
    first = next(iter(layout.networks), BARE)
    for place in layout.networks.get(wanted or first, ()):
        if (found := _inside(raw, place)) is not None:
            return _parts(layout, raw, place, found, wanted or first)
    entry = next((e for e in layout.entries if isinstance(raw.state.get(e), Mapping)), "")
    if not entry and (other := _held(layout, raw)):
        raise CheckpointError(
            f"{raw.path} holds the network {other!r} and not {wanted or first!r}: name it by --network"
        )
    bare = loading.unwrap(raw, [entry] if entry else list(layout.entries or layout.networks))
    state = loading.strip(bare.state, "module.")
    if wanted and wanted not in (first, BARE):
        raise CheckpointError(
            f"{raw.path} holds one network only and does not say that it is the {wanted}; leave --network out"
        )
    return _parts(layout, raw, Place(bare.name), (state, {}), wanted or BARE)


def _inside(raw: RawCheckpoint, place: Place) -> tuple[State, State] | None:
    """(the network's keys without the prefix, the entry's other keys), None where the file has no such place."""
    if place.entry and not isinstance(raw.state.get(place.entry), Mapping):
        return None
    if not place.entry and not any(isinstance(value, Tensor) for value in raw.state.values()):
        return None
    state = loading.strip(loading.unwrap(raw, [place.entry] if place.entry else []).state, "module.")
    inside, outside = loading.split(state, place.prefix) if place.prefix else (state, {})
    return (loading.strip(inside, "module."), outside) if inside else None


def _held(layout: Layout, raw: RawCheckpoint) -> str:
    """The first network of the family that the file says it holds, "" where it says nothing."""
    named = ((name, place) for name, places in layout.networks.items() for place in places if place != Place())
    return next((name for name, place in named if _inside(raw, place) is not None), "")


def _parts(layout: Layout, raw: RawCheckpoint, place: Place, found: tuple[State, State], network: str) -> Parts:
    inside, outside = found
    inside = layout.prepare(inside)
    dropped, unexpected = _apply(layout.outside, outside)
    cut, left = _apply((*layout.drop, CLASSIFIER), inside)
    kept = {key: inside[key] for key in left}
    head, rest = loading.split(kept, layout.head) if layout.head else ({}, kept)
    backbone, others = loading.split(rest, layout.backbone) if layout.backbone else ({}, rest)
    if not backbone:
        backbone, others = others, {}
    beside = tuple(str(key) for key in raw.state if key != place.entry) if place.entry else ()
    return Parts(
        network=network,
        entry=place.entry,
        beside=beside,
        backbone=layout.rename(backbone),
        head=head,
        dropped=dropped | cut,
        unexpected=(*unexpected, *others),
    )


def _apply(rules: tuple[Rule, ...], state: State) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """({rule: keys that it covers}, keys that none covers)."""
    dropped: dict[str, list[str]] = {}
    left = []
    for key in state:
        rule = next((rule for rule in rules if rule.covers(key)), None)
        if rule is None:
            left.append(key)
        else:
            dropped.setdefault(rule.name, []).append(key)
    return {name: tuple(keys) for name, keys in dropped.items()}, tuple(left)


def imagenet(config: ViTConfig, source: str) -> Preprocessing:
    """ImageNet's mean and std at the native size."""
    return Preprocessing(config.size, IMAGENET_MEAN, IMAGENET_STD, source)
