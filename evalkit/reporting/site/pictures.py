"""Pictures of an encoder, drawn once: what is drawn lies in the cache under a digest of all that decides it.

The drawing itself is `evalkit show`, given as a function, because reports stand below the command line.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit import catalog
from evalkit.errors import EvalkitError, Unsupported
from evalkit.reporting.site.board import Encoder
from evalkit.reporting.site.parts import Picture
from evalkit.version import __version__

Draw = Callable[[str, Mapping[str, Any], Path], None]
"""Draws a kind of picture with these arguments into a file: `evalkit show KIND ... --out FILE`. Raises EvalkitError."""

FAILED = "cannot be drawn"
"""So begins the reason of a missing picture, unless the encoder lacks what it needs."""


@dataclass(frozen=True)
class Kind:
    """One kind of picture. name: of the module in `evalkit.cli.show`. alt: what it shows, after the encoder's name.
    arguments: of its function. reads: files and folders under mini/ that decide it."""

    name: str
    title: str
    alt: str
    arguments: Mapping[str, Any]
    reads: tuple[str, ...]

    def command(self, encoder: str) -> str:
        """What a person types for the same picture, in the root of a clone."""
        words = ["evalkit show", self.name.replace("_", "-"), encoder]
        for key, value in self.arguments.items():
            given = " ".join(map(_typed, value if isinstance(value, list) else [value]))
            words.append(given if key in ("image", "images", "folder") else f"--{key} {given}")
        return " ".join([*words, f"--out {self.name}.png"])


def _typed(value: object) -> str:
    """Paths of what is shipped as they are in a clone."""
    root = catalog.shipped_data()
    path = Path(str(value))
    return f"mini/{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else str(value)


ONE, TWO, SIZE = "coco/val2017/000000058636.jpg", "coco/val2017/000000160012.jpg", 240


def kinds() -> list[Kind]:
    """All kinds, those that need the fewest words first."""
    root = catalog.shipped_data()
    one, two = root / ONE, root / TWO
    both, single = {"images": [one, two], "size": SIZE}, {"image": one, "size": SIZE}
    return [
        Kind("pca", "Principal components of patches",
             "two photographs, and their patches coloured by the first three principal components", both, (ONE, TWO)),
        Kind("prompt", "What looks like the patch pointed at",
             "a photograph with one patch pointed at, the heat map of similarity to it, and the mask above a threshold",
             {"image": str(two), "at": "300,300", "threshold": 0.8, "size": SIZE}, (TWO,)),
        Kind("kmeans", "Clusters of patches", "two photographs, and their patches in three clusters", both, (ONE, TWO)),
        Kind("attention", "Attention of the last block", "a photograph, and where each head of the last block looks",
             single, (ONE,)),
        Kind("correspondence", "Patches that choose each other",
             "two views of one photograph, lines between patches that are each other's most similar, right ones unbroken",
             single, (ONE,)),
        Kind("patch_search", "Nearest patches of six photographs", "a patch, and the twelve patches most similar to it",
             {"folder": root / "coco/val2017", "query": f"{Path(ONE).name}:3,3", "top": 12, "limit": 6}, ("coco/val2017",)),
        Kind("part_retrieval", "Nearest parts", "a crop of a part, and the twelve crops most similar to it, right or wrong",
             {"recipe": "mini-part-retrieval-ccp", "top": 12}, ("ccp",)),
        Kind("tsne", "t-SNE of garments and body segments", "test crops as points in the plane, coloured by class",
             {"recipe": "mini-knn-ccp-items"}, ("ccp",)),
        Kind("similarity", "How similar patches of one kind and of two are",
             "histograms of cosine between patches of the same and of different categories and objects",
             {"recipe": "mini-similarity-coco", "limit": 16}, ("coco",)),
        Kind("video", "Masks carried through a clip", "frames of a clip with the masks that the features carried along",
             {"recipe": "mini-video"}, ("video",)),
    ]  # fmt: skip


def is_shipped(encoder: Encoder) -> bool:
    """Whether the network behind the records is the one that travels with evalkit under this id."""
    name = str(encoder.spec["id"])
    if name not in catalog.shipped_encoders():
        return False
    known, spec = catalog.manifest(name), encoder.spec
    return (
        (known.family, known.arch) == (spec.get("family"), spec.get("arch"))
        and known.sha256 in ("", spec.get("digest"))
        and known.network in ("", spec.get("network"))
        and known.preprocessing.size == (spec.get("preprocessing") or {}).get("size", known.preprocessing.size)
    )


def make(encoder: Encoder, draw: Draw, folder: Path) -> Iterator[Picture]:
    """Each picture of a shipped encoder, from the cache or drawn anew, copied into `folder`. What cannot be drawn comes
    without a file and with the reason."""
    for kind in kinds():
        yield _made(kind, encoder, draw, folder)


def _made(kind: Kind, encoder: Encoder, draw: Draw, folder: Path) -> Picture:
    command = kind.command(str(encoder.spec["id"]))
    alt = f"{encoder.name}: {kind.alt}"
    try:
        kept = catalog.cache_root() / "pictures" / f"{_digest(kind, encoder)}.png"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f".{kept.stem}.part.png")
            draw(kind.name, {"checkpoint": str(encoder.spec["id"]), **kind.arguments}, part)
            part.replace(kept)
        name = f"{encoder.spec['id']}-{kind.name.replace('_', '-')}.png"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, folder / name)
        return Picture(kind.name, kind.title, alt, command, name, _size(kept))
    except Unsupported as error:
        return Picture(kind.name, kind.title, alt, command, why=str(error))
    except (EvalkitError, OSError) as error:
        return Picture(kind.name, kind.title, alt, command, why=f"{FAILED}: {error}")


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def _digest(kind: Kind, encoder: Encoder) -> str:
    package = Path(__file__).resolve().parents[2]
    drawn_by = [package / "cli" / "show" / f"{kind.name}.py", *sorted((package / "reporting" / "figures").glob("*.py"))]
    return catalog.digest([
        __version__, kind.name, {k: str(v) for k, v in kind.arguments.items()}, str(encoder.spec.get("digest")),
        encoder.spec.get("seed"), [hashlib.sha256(p.read_bytes()).hexdigest() for p in drawn_by],
        [_state(catalog.shipped_data() / name) for name in kind.reads],
    ])  # fmt: skip


def _state(path: Path) -> object:
    """What tells whether files changed: contents of a file; names, sizes and times of all below a folder."""
    if path.is_dir():
        below = sorted(p for p in path.rglob("*") if p.is_file())
        return [[str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns] for p in below]
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"
