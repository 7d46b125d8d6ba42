"""The `Dataset` that every reader of files returns: samples in a tuple, pictures read and decoded on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from evalkit.datasets import images
from evalkit.datasets.files import Tree
from evalkit.errors import BrokenImage, DatasetError, MissingFiles
from evalkit.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


class Pictures(Protocol):
    """Where the image of a group comes from."""

    def image(self, group: str) -> Image:
        """The decoded RGB image. Raises BrokenImage."""
        ...

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """(sha256 over the pictures of these groups, how it was made)."""
        ...

    @property
    def root(self) -> str:
        """Where they lie, for messages and records."""
        ...


@dataclass(frozen=True)
class Photos:
    """One image file per group. pattern: its path in the tree, "{}" standing for the group.

    sizes: (width, height) in pixels that the annotation of a group was made for; a photo of another size is broken,
    because its boxes would lie somewhere else. broken: what is wrong with the annotation of a group; such a photo is as one
    that cannot be decoded, so that whoever may leave out the one leaves out the other.
    """

    tree: Tree
    pattern: str = "{}"
    sizes: Mapping[str, tuple[int, int]] | None = None
    broken: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def root(self) -> str:
        """The folder or zip, and the part inside."""
        return str(self.tree)

    def path(self, group: str) -> str:
        """The file of a group, relative to the tree."""
        return self.pattern.replace("{}", group)

    def image(self, group: str) -> Image:
        """The decoded image of a group. Raises BrokenImage; MissingFiles where the file has gone."""
        name = self._usable(group)
        try:
            data = self.tree.read(name)
        except MissingFiles:
            raise
        except DatasetError as cause:
            raise BrokenImage(str(cause)) from cause
        picture = images.decode(data, self.tree.where(name))
        expected = self.sizes.get(group) if self.sizes else None
        if expected and picture.size != expected:
            raise BrokenImage(
                f"{self.tree.where(name)}: is {picture.size} pixels, but its annotation is for {expected}"
            )
        return picture

    def size(self, group: str) -> tuple[int, int]:
        """(width, height) in pixels of the upright image of a group, from its header. Raises as `image`."""
        name = self._usable(group)
        return images.upright_size(self.tree.read(name), self.tree.where(name))

    def digest(self, groups: Sequence[str]) -> tuple[str, str]:
        """As `Tree.digest`, over the files of these groups, and what is wrong with their annotations."""
        content, how = self.tree.digest(self.path(group) for group in groups)
        if wrong := sorted((group, self.broken[group]) for group in groups if group in self.broken):
            content = hashlib.sha256(f"{content} {wrong}".encode("utf-8", "surrogateescape")).hexdigest()
            how = f"{how}, and what is wrong with annotations"
        return content, how

    def _usable(self, group: str) -> str:
        name = self.path(group)
        if why := self.broken.get(group):
            raise BrokenImage(f"{self.tree.where(name)}: {why}")
        return name


@dataclass(frozen=True, eq=False)
class Listing:
    """Samples of one split; see `evalkit.types.Dataset`. facts: what `describe` says beside the counts."""

    name: str
    split: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)
    pictures: Pictures = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError(f"{self.name}: the split {self.split!r} of {self.pictures.root} holds no samples")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return self.samples[index]

    def image(self, group: str) -> Image:
        """The decoded image of a group: mode RGB, upright. Raises BrokenImage."""
        return self.pictures.image(group)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The groups in order of first appearance."""
        return tuple(dict.fromkeys(sample.group for sample in self.samples))

    @cached_property
    def _digests(self) -> tuple[str, str]:
        content, how = self.pictures.digest(self.groups)
        total = hashlib.sha256(f"{content}\n{self.classes!r}\n".encode())
        for sample in self.samples:
            line = f"{sample.id}\0{sample.group}\0{sample.label}\0{sample.box!r}\n"
            total.update(line.encode("utf-8", "surrogateescape"))
        return total.hexdigest(), how

    @property
    def digest(self) -> str:
        """sha256 over classes, ids, groups, labels, boxes and the pictures; made when first asked for."""
        return self._digests[0]

    def describe(self) -> dict[str, Any]:
        """Plain facts for the record: root, counts, classes, digest and how it was made, and the reader's own facts."""
        seen = {sample.label for sample in self.samples}
        unseen = [name for label, name in enumerate(self.classes) if label not in seen]
        return {
            "dataset": self.name,
            "split": self.split,
            "root": self.pictures.root,
            "samples": len(self.samples),
            "images": len(self.groups),
            "classes": list(self.classes),
            **({} if seen == {-1} else {"classes_without_samples": unseen}),
            "digest": self.digest,
            "digest_of": f"classes, ids, labels and boxes; of the pictures: {self._digests[1]}",
            **self.facts,
        }
