"""The comparison tables of the shipped zoo: `make tables` measures and writes them, CI checks them against their records.

    reports/SUITE.md, .html     what `evalkit table SUITE` prints
    reports/records/SUITE.zip   the records behind it, with the outcomes that its tests need

`python reports/tables.py RUNS` writes them from the records under RUNS; `--check` holds what is here to its records, and the
records to the recipes and weights of today. The zips are the same bytes for the same records.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit import catalog, records
from evalkit.errors import EvalkitError, RecordError
from evalkit.records import Record
from evalkit.reporting import comparable, table, table_formats

HERE = Path(__file__).resolve().parent
CLONE = HERE.parent
SUITES = {"demo": None, "mini": None, "zoo": 4000}
"""The --limit of each; `zoo` needs CIFAR-10 under the data root."""

FORMATS = ("md", "html")
EPOCH = (1980, 1, 1, 0, 0, 0)


def chosen(suite: str, runs: Path) -> Iterator[Record]:
    """The records that stand in the suite's table, of encoders that travel with evalkit."""
    shipped = {name for name in catalog.manifests() if (m := catalog.manifest(name)).shipped or m.control}
    for recipe in dict.fromkeys(column.recipe for column in catalog.suite(suite).columns):
        held = [r for r in records.find(runs, recipe=recipe) if r.encoder["id"] in shipped and not stale(r)]
        found, _ = comparable.select(held, SUITES[suite])
        yield from found.values()


def stale(record: Record) -> str:
    """Why a record no longer says anything about what is here now; "" where it does."""
    recipe, encoder = record.recipe["id"], record.encoder["id"]
    if record.recipe.get("digest") != catalog.recipe(recipe).digest:
        return f"{recipe} has changed since {encoder} was measured"
    if (catalog.manifest(encoder).sha256 or None) not in (None, record.encoder.get("digest")):
        return f"{encoder} has other weights than those that were measured with {recipe}"
    return ""


def texts(suite: str, runs: Path) -> dict[str, str]:
    """The table in each format."""
    found = table.build(catalog.suite(suite), runs, limit=SUITES[suite])
    return {name: table_formats.FORMATS[name](found) for name in FORMATS}


def pack(suite: str, runs: Path) -> None:
    """Copies the records of the table into the suite's zip."""
    target = HERE / "records" / f"{suite}.zip"
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for record in sorted(chosen(suite, runs), key=lambda r: (r.encoder["id"], r.recipe["id"])):
            path = records.path_of(runs, record.encoder["id"], record.recipe["id"], record.key)
            for file in sorted(path.parent.glob(f"{path.stem}.*")):
                if ".head." not in file.name:  # trained weights, which no table reads
                    content = _portable(file) if file.suffix == ".json" else file.read_bytes()
                    entry = zipfile.ZipInfo(file.relative_to(runs).as_posix(), EPOCH)
                    packed.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _portable(file: Path) -> bytes:
    """A record without the folders of the machine that measured it; what lies in the clone is named from its root."""
    content = json.loads(file.read_text("utf-8"))
    return (json.dumps(_without_places(content), indent=1, ensure_ascii=False) + "\n").encode()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_without_places(held) for held in value]
    if not isinstance(value, str) or not value.startswith(("/", "../", "~")):
        return value
    path = Path(value)
    return path.relative_to(CLONE).as_posix() if path.is_relative_to(CLONE) else path.name


def unpacked(suite: str, folder: Path) -> Path:
    """The records of a suite's zip, as a folder of runs."""
    with zipfile.ZipFile(HERE / "records" / f"{suite}.zip") as packed:
        packed.extractall(folder)
    return folder


def check(suite: str) -> list[str]:
    """What does not agree: a sentence each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = unpacked(suite, Path(folder))
        old = [why for record in records.find(runs) if (why := stale(record))]
        written = texts(suite, runs)
    other = [f"reports/{suite}.{name} is not what its records say" for name, text in written.items()
             if (HERE / f"{suite}.{name}").read_text("utf-8") != text]  # fmt: skip
    return old + other


def write(runs: Path) -> None:
    """Packs the records of every suite, and writes the tables from what was packed."""
    for suite in SUITES:
        try:
            pack(suite, runs)
            with tempfile.TemporaryDirectory() as folder:
                written = texts(suite, unpacked(suite, Path(folder)))
        except RecordError as error:
            print(f"{suite}: left as it is ({error})")
            continue
        table.write(written, HERE, suite)
        print(f"reports/{suite}.md")


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--check"]:
            wrong = [line for suite in SUITES for line in check(suite)]
            sys.exit("\n".join([*wrong, "run: make tables"]) if wrong else 0)
        write(Path(sys.argv[1]))
    except EvalkitError as error:
        sys.exit(f"evalkit: {error}")
