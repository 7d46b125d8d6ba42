"""Finds and validates recipes, manifests and suites: TOML files whose name is their id.

In a checkout they lie in `protocols/` and `model_zoo/`; in an installed wheel in `evalkit/_catalogues/`. A path to a file
of one's own works wherever an id does. Weights that do not travel with evalkit lie in the cache, where `evalkit fetch`
puts them: `checkpoints/<name>-<digest of the address>/<name>`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import tomllib
import urllib.parse
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from evalkit.errors import CatalogError, CheckpointError, NotFetched, UnknownName
from evalkit.files import WRITTEN_BY_HAND, read_regular
from evalkit.types import Column, Manifest, PaperTable, PublishedAs, Recipe, Suite
from evalkit.validation import parse

_NOT_MEASURED = {"title", "published", "source", "digest"}
"""Keys of a recipe that say something about it and change no number."""


@cache
def root() -> Path:
    """The folder that holds `protocols/`, `model_zoo/`, `reports/` and `mini/`."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "protocols").is_dir() else package / "_catalogues"


def shipped_data() -> Path:
    """Where the data sets lie that travel with evalkit."""
    return root() / "mini"


def cache_root() -> Path:
    """The cache folder: $EVALKIT_CACHE, else $XDG_CACHE_HOME/evalkit, else ~/.cache/evalkit."""
    if own := os.environ.get("EVALKIT_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "evalkit"


def _ids(folder: str) -> dict[str, Path]:
    return {p.stem: p for p in sorted((root() / folder).glob("*.toml"), key=lambda p: p.stem)}


def recipes() -> list[str]:
    """Ids of all recipes."""
    return list(_ids("protocols"))


def manifests() -> list[str]:
    """Ids of all encoders in the zoo."""
    return list(_ids("model_zoo"))


def suites() -> list[str]:
    """Ids of all suites."""
    return list(_ids("protocols/suites"))


def _read(kind: str, name: str, folder: str) -> tuple[Path, dict[str, Any]]:
    known = _ids(folder)
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise UnknownName(kind, name, known)
    try:
        return path, tomllib.loads(read_regular(path, limit=WRITTEN_BY_HAND).decode("utf-8"))
    except FileNotFoundError:
        raise CatalogError(f"{path}: no such {kind} file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from None


def _refuse(path: Path, mapping: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if key in mapping:
            raise CatalogError(f"{path}: key {key!r} is not written in the file: it follows from its name or content")


def recipe(name: str) -> Recipe:
    """The recipe of this id, or of this file. Raises UnknownName or CatalogError (file, key, allowed)."""
    path, content = _read("recipe", name, "protocols")
    _refuse(path, content, "id", "digest")
    measured = {k: v for k, v in content.items() if k not in _NOT_MEASURED}
    return parse(Recipe, content | {"id": path.stem, "digest": digest(measured)}, str(path))


def manifest(name: str) -> Manifest:
    """The encoder of this id, or of this file.

    `file` is the path of its weights: beside the manifest, or in the cache where they are fetched (whether they are there:
    `weights`). `sha256` is the manifest's, else the one recorded when they were fetched first.
    """
    path, content = _read("encoder", name, "model_zoo")
    _refuse(path, content, "id")
    found = parse(Manifest, content | {"id": path.stem}, str(path))
    _check_manifest(found, path)
    if found.file and not found.url:
        return dataclasses.replace(found, file=str(path.parent / found.file))
    if not found.url and not by_hand(found):
        return found
    from evalkit import download

    place = cached(found)
    here = place.is_file() or found.url
    return dataclasses.replace(
        found, file=str(place) if here else "", sha256=found.sha256 or (download.recorded(place) if here else "")
    )


def by_hand(found: Manifest) -> bool:
    """Whether only people can get its weights: the authors' page wants a click, a login or a permission."""
    return not (found.url or found.control or found.shipped) and found.origin.startswith(("https://", "http://"))


def cached(found: Manifest) -> Path:
    """Where the weights lie, or will lie, that are fetched for a manifest.

    Another address is another file, and manifests with one address (two networks of one file) share it; what people get
    by hand is told apart by id and page.
    """
    name = Path(found.file).name or Path(urllib.parse.unquote(urllib.parse.urlsplit(found.url).path)).name
    name = name or f"{found.id}.pth"
    mark = hashlib.sha256((found.url or f"{found.id} {found.origin}").encode()).hexdigest()[:8]
    return cache_root() / "checkpoints" / f"{Path(name).stem}-{mark}" / name


def states_digest(name: str) -> bool:
    """Whether the manifest itself has a sha256; else `manifest` gives the one that the first download had."""
    return "sha256" in _read("encoder", name, "model_zoo")[1]


def weights(name: str) -> Path | None:
    """The weights file of an encoder by id or manifest file; None where it has none.

    Raises NotFetched with the command that fetches them, or with what its manifest says about getting them by hand.
    """
    found = manifest(name)
    if found.url and not Path(found.file).is_file():
        raise NotFetched(f"the weights of {found.id} are not on this machine yet. run: evalkit fetch {name}")
    if not found.file and by_hand(found):
        raise NotFetched(
            f"the weights of {found.id} are not on this machine, and only people can get them. {found.notes}"
            f"\n  page: {found.origin}\n  then run: evalkit fetch {name} --from FILE"
        )
    return Path(found.file) if found.file else None


TWIN = "random:"
"""Before an encoder's id or file: its untrained twin."""


def located(encoder: str) -> Path | None:
    """The weights of an encoder by id, manifest file or path of a weights file; None for a control. Of an untrained twin
    (`random:ENCODER`) those of the encoder that it is a twin of.

    Raises UnknownName with the nearest ids, NotFetched, CheckpointError where there is no such file.
    """
    encoder = encoder.removeprefix(TWIN)
    if encoder in manifests() or encoder.endswith(".toml"):
        return weights(encoder)
    path, here = Path(encoder), os.path.exists(encoder)  # False too for what can be no path
    if not here and not path.suffix and "/" not in encoder:
        raise UnknownName("encoder (or file)", encoder, manifests())
    if not here:
        raise CheckpointError(f"there is no checkpoint file at {path}")
    return path


_HEXADECIMAL = {"sha256": (64, 64), "sha256_prefix": (4, 64), "md5_prefix": (4, 32)}
"""Digits at least and at most."""


def _check_manifest(found: Manifest, path: Path) -> None:
    """What the types do not say. Raises CatalogError with file, key and what is allowed."""
    for key, (least, most) in _HEXADECIMAL.items():
        if (text := getattr(found, key)) and not re.fullmatch(rf"[0-9a-f]{{{least},{most}}}", text):
            digits = f"{most}" if least == most else f"{least} to {most}"
            raise CatalogError(f"{path}: key {key!r} is {text!r}: it is {digits} hexadecimal digits in small letters")
    if found.sha256 and not found.sha256.startswith(found.sha256_prefix):
        raise CatalogError(f"{path}: sha256 {found.sha256} does not begin with sha256_prefix {found.sha256_prefix}")
    if found.size < 0:
        raise CatalogError(f"{path}: key 'size' is {found.size}: bytes, 0 where not known")
    if found.url:
        _check_address(found, path)


def _check_address(found: Manifest, path: Path) -> None:
    try:
        parts = urllib.parse.urlsplit(found.url)
        _ = parts.port
    except ValueError as error:
        raise CatalogError(f"{path}: key 'url' is {found.url!r}: no address ({error})") from None
    if parts.scheme not in ("https", "http", "file") or not (parts.netloc or parts.scheme == "file"):
        raise CatalogError(f"{path}: key 'url' is {found.url!r}: it is an https, http or file address")
    if found.file and Path(found.file).name != found.file:
        raise CatalogError(
            f"{path}: key 'file' is {found.file!r}: beside 'url' it is a name in the cache, without folders"
        )
    if not found.file and not Path(parts.path).name:
        raise CatalogError(f"{path}: key 'url' is {found.url!r}: it ends in no name; give one with 'file'")


@cache
def papers() -> tuple[Mapping[str, str], ...]:
    """All rows of reports/published/papers.csv, in the file's order."""
    with (root() / "reports" / "published" / "papers.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def published(selector: PublishedAs) -> list[Mapping[str, str]]:
    """The rows of reports/published/papers.csv that a manifest's `published_as` selects, in the file's order."""
    return [row for row in papers() if _selects(selector, row)]


def _selects(selector: PublishedAs, row: Mapping[str, str]) -> bool:
    same = all(row[key] == getattr(selector, key) for key in ("method", "arch", "pretrain_data"))
    among = {"pretrain_epochs": selector.pretrain_epochs, "paper": selector.papers, "table": selector.tables}
    return same and all(not allowed or row[key] in allowed for key, allowed in among.items())


@cache
def printed_encoders() -> tuple[tuple[str, PublishedAs], ...]:
    """Ids of the encoders that papers print numbers of, each with the rows that are its own."""
    found = ((m.id, m.published_as) for m in map(manifest, manifests()))
    return tuple((name, selector) for name, selector in found if selector is not None)


def encoder_of(row: Mapping[str, str]) -> str:
    """The encoder in the zoo whose number a row of papers.csv is, by `published_as`; "" where there is none."""
    return next((name for name, selector in printed_encoders() if _selects(selector, row)), "")


def suite(name: str) -> Suite:
    """The suite of this id, or of this file; every recipe and encoder that it names must exist.

    The suite of a paper's table has a column for each recipe that measures some of it and exists.
    """
    path, content = _read("suite", name, "protocols/suites")
    _refuse(path, content, "id")
    if "paper" in content:
        return _as_suite(paper_table(name))
    found = parse(Suite, content | {"id": path.stem}, str(path))
    for column in found.columns:
        if column.recipe not in recipes():
            raise CatalogError(f"{path}: {UnknownName('recipe', column.recipe, recipes())}")
    _check_encoders(path, found.encoders)
    return found


def _check_encoders(path: Path, encoders: Iterable[str]) -> None:
    for encoder in encoders:
        if encoder.removeprefix(TWIN) not in manifests():
            raise CatalogError(f"{path}: {UnknownName('encoder', encoder, manifests())}")


def _as_suite(table: PaperTable) -> Suite:
    asked = dict.fromkeys(m.recipe for column in table.columns for m in column.measures)
    columns = tuple(Column(name) for name in asked if name in recipes())
    return Suite(table.id, table.title, columns, tuple(dict.fromkeys(n.encoder for n in table.networks)), table.notes)


def is_paper_table(name: str) -> bool:
    """Whether a suite, by id or file, is a table of a paper. Raises UnknownName or CatalogError."""
    return "paper" in _read("suite", name, "protocols/suites")[1]


def paper_tables() -> list[str]:
    """Ids of the suites that are tables of papers."""
    return [name for name in suites() if is_paper_table(name)]


def paper_table(name: str) -> PaperTable:
    """The table of a paper, by id or file. Recipes that do not exist yet may be named, encoders may not.

    Raises UnknownName or CatalogError.
    """
    path, content = _read("suite", name, "protocols/suites")
    _refuse(path, content, "id")
    found = parse(PaperTable, content | {"id": path.stem}, str(path))
    titles = [column.title for column in found.columns]
    if len(set(titles)) < len(titles):
        raise CatalogError(f"{path}: two columns have the same title; they are {', '.join(titles)}")
    for row in found.rows:
        if unknown := sorted(set(row.blank) - set(titles)):
            raise CatalogError(f"{path}: blank names {', '.join(unknown)}, but the columns are {', '.join(titles)}")
        if set(row.blank) == set(titles):
            raise CatalogError(f"{path}: a row is blank in every column: leave it out")
    _check_encoders(path, [network.encoder for network in found.networks])
    return found


def file(path: str) -> Manifest | Recipe | Suite:
    """A file of one's own, told apart by the key that only its kind has: family, runner or columns."""
    content = _read("catalog", path, "protocols")[1]
    if "family" in content:
        return manifest(path)
    if "runner" in content:
        return recipe(path)
    if "columns" in content:
        return suite(path)
    raise CatalogError(f"{path}: no encoder (family), recipe (runner) or suite (columns): none of these keys is in it")


def shipped_encoders() -> list[str]:
    """Ids of the encoders whose weights travel with evalkit, trained ones first, controls last."""
    shipped = [i for i in manifests() if _read("encoder", i, "model_zoo")[1].get("shipped")]
    return [m.id for m in sorted(map(manifest, shipped), key=lambda m: (m.control, m.id)) if m.shipped]


def digest(content: Any) -> str:
    """sha256 of a plain structure, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
