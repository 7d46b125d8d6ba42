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
SUITES: dict[str, int | None] = {"demo": None, "mini": None, "zoo": 4000}
"""The --limit of each; `zoo` needs CIFAR-10 under the data root."""

FORMATS = ("md", "html")
EPOCH = (1980, 1, 1, 0, 0, 0)


def encoders(suite: str) -> set[str]:
    """Ids of the encoders that the suite names, controls among them."""
    return set(catalog.suite(suite).encoders)


def rows(suite: str, runs: Path) -> set[str]:
    """Ids of the encoders that the suite names and, as their records say, of their untrained twins."""
    own = encoders(suite)
    return own | {r.encoder["twin"] for r in records.find(runs) if r.encoder["id"] in own and r.encoder.get("twin")}


def chosen(suite: str, runs: Path) -> Iterator[Record]:
    """The records that stand in the suite's table, of the encoders that it names and of their untrained twins."""
    wanted = rows(suite, runs)
    for recipe in dict.fromkeys(column.recipe for column in catalog.suite(suite).columns):
        held = [r for r in records.find(runs, recipe=recipe) if r.encoder["id"] in wanted and not stale(r)]
        found, _ = comparable.select(held, SUITES[suite])
        yield from found.values()


def stale(record: Record) -> str:
    """Why a record no longer says anything about what is here now; "" where it does."""
    recipe, encoder = record.recipe["id"], record.encoder["id"]
    if record.recipe.get("digest") != catalog.recipe(recipe).digest:
        return f"{recipe} has changed since {encoder} was measured"
    if encoder not in catalog.manifests():  # an untrained twin has no weights that could be others
        return ""
    if (catalog.manifest(encoder).sha256 or None) not in (None, record.encoder.get("digest")):
        return f"{encoder} has other weights than those that were measured with {recipe}"
    return ""


def texts(suite: str, runs: Path) -> dict[str, str]:
    """The table in each format."""
    found = table.build(catalog.suite(suite), runs, limit=SUITES[suite])
    return {name: table_formats.FORMATS[name](found) for name in FORMATS}


def pack(suite: str, runs: Path, target: Path) -> None:
    """Copies the records of the table into a zip."""
    with zipfile.ZipFile(target, "w") as packed:
        for record in sorted(chosen(suite, runs), key=lambda r: (r.encoder["id"], r.recipe["id"])):
            path = records.path_of(runs, record.encoder["id"], record.recipe["id"], record.key)
            for file in sorted(path.parent.glob(f"{path.stem}.*")):
                if ".head." not in file.name:  # trained weights, which no table reads
                    content = _portable(file) if file.suffix == ".json" else file.read_bytes()
                    entry = zipfile.ZipInfo(file.relative_to(runs).as_posix(), EPOCH)
                    packed.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)


def _portable(file: Path) -> bytes:
    """A record without the folders of the machine that measured it; what lies in the clone is named from its root."""
    content = _without_places(json.loads(file.read_text("utf-8")))
    content = records.sealed(content) if content["schema"] > 1 else content
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_without_places(held) for held in value]
    if not isinstance(value, str) or not value.startswith(("/", "../", "~")):
        return value
    path = Path(value)
    return path.relative_to(CLONE).as_posix() if path.is_relative_to(CLONE) else path.name


def zip_of(suite: str) -> Path:
    """Where a suite's records lie."""
    return HERE / "records" / f"{suite}.zip"


def unpacked(packed: Path, folder: Path) -> Path:
    """The records of a zip, as a folder of runs."""
    with zipfile.ZipFile(packed) as entries:
        entries.extractall(folder)
    return folder


def check(suite: str) -> list[str]:
    """What does not agree: a sentence each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = unpacked(zip_of(suite), Path(folder))
        old = [why for record in records.find(runs) if (why := stale(record))]
        written = texts(suite, runs)
    other = [f"reports/{suite}.{name} is not what its records say" for name, text in written.items()
             if (HERE / f"{suite}.{name}").read_text("utf-8") != text]  # fmt: skip
    return old + other


def write(runs: Path) -> None:
    """The zip and the tables of every suite that was measured whole; another stays as it is, and is told."""
    for suite in SUITES:
        with tempfile.TemporaryDirectory(dir=HERE) as folder:
            packed, place = Path(folder) / "records.zip", Path(folder) / "runs"
            pack(suite, runs, packed)
            try:
                written = texts(suite, unpacked(packed, place))
            except RecordError as error:
                print(f"reports/{suite}.md stays as it is: {error}")
                continue
            if missing := lacking(suite, place):
                print(f"reports/{suite}.md stays as it is: no record of {', '.join(missing)}")
                continue
            zip_of(suite).parent.mkdir(exist_ok=True)
            packed.replace(zip_of(suite))
        table.write(written, HERE, suite)
        print(f"reports/{suite}.md")


def lacking(suite: str, runs: Path) -> list[str]:
    """Recipes of the suite, each with the suite's encoders that were not measured with it."""
    wanted = dict.fromkeys(column.recipe for column in catalog.suite(suite).columns)
    absent = {
        recipe: sorted(encoders(suite) - {r.encoder["id"] for r in records.find(runs, recipe=recipe)})
        for recipe in wanted
    }
    return [f"{recipe} ({', '.join(names)})" for recipe, names in absent.items() if names]


def main(words: list[str]) -> str | int:
    """What the process ends with: 0, or what is wrong."""
    try:
        if words == ["--check"]:
            wrong = [line for suite in SUITES for line in check(suite)]
            return "\n".join([*wrong, "run: make tables"]) if wrong else 0
        if len(words) != 1 or not Path(words[0]).is_dir():
            return "usage: python reports/tables.py RUNS, a folder of records, or --check"
        write(Path(words[0]))
    except (EvalkitError, OSError) as error:
        return f"evalkit: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
