"""One page per runner: what it measures, its source and options, and every recipe with its source and published values."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import known
from prose import cell, code, docstring, fields, folded, inline, markdown, split, table

from evalkit import catalog, runners
from evalkit.datasets import published
from evalkit.reporting import printed
from evalkit.reporting.names import name as as_printed
from evalkit.types import Measure, PaperTable, Recipe

HERE = Path(__file__).parent
SOURCES = Path(runners.__file__).parent
TITLES = {
    "attentive": "Attentive probe",
    "fewshot": "Few-shot episodes",
    "hummingbird": "Dense nearest neighbours (Hummingbird)",
    "knn": "k-NN",
    "landmarks": "Landmark retrieval",
    "linear": "Linear probe",
    "logreg": "Logistic regression on few labels",
    "pose": "Pose",
    "prompt": "Prompted segmentation",
    "retrieval": "Object and part retrieval",
    "segmentation": "Linear segmentation",
    "similarity": "Patch similarity",
    "variance": "Variance under crops and noise",
    "video": "Video label propagation",
}
"""Names for the menu; a runner that is not here is called by its module."""


def title(runner: str) -> str:
    """The runner's name for people."""
    return TITLES.get(runner, runner)


def order() -> list[str]:
    """Runners from whole images to patches and videos; one that no list names comes last."""
    first = ["knn", "linear", "attentive", "logreg", "fewshot", "variance", "retrieval", "landmarks", "pose",
             "segmentation", "hummingbird", "prompt", "similarity", "video"]  # fmt: skip
    return [*(r for r in first if r in runners.names()), *(r for r in runners.names() if r not in first)]


def pages() -> Iterator[tuple[str, str]]:
    """(path, Markdown) of the overview and of every runner's page."""
    yield "protocols/index.md", overview()
    for runner in order():
        yield f"protocols/{runner}.md", page(runner)


def recipes(runner: str) -> tuple[Recipe, ...]:
    """The recipes of a runner, those on shipped data last."""
    found = [r for r in known.recipes() if r.runner == runner]
    return tuple(sorted(found, key=lambda r: (r.dataset.shipped, r.id)))


def overview() -> str:
    """All recipes in one table, filtered by the browser's own search."""
    rows, listed = [], []
    for runner in order():
        what, _ = split(docstring(SOURCES / f"{runner}.py"))
        found = recipes(runner)
        rows.append((f"[{title(runner)}]({runner}.md)", inline(what), str(len(found))))
        ids = ", ".join(f"[{r.id}]({runner}.md#{r.id})" for r in found)
        listed.append(f"**{title(runner)}**: {ids}")
    return "\n\n".join([
        "# Protocols",
        f"A recipe is one published way to get one number. There are {len(known.recipes())}, made of {len(rows)} runners; each "
        "page says what is measured, from which paper and code, with which options, and what papers print for it. These pages "
        "are made from `protocols/*.toml` and from the runners' docstrings; `evalkit describe ID` prints the same.",
        table(("runner", "what it does", "recipes"), rows),
        "## All recipes",
        "Those whose id begins with `mini-` need no download: their data travel with evalkit.",
        *listed,
    ])  # fmt: skip


def page(runner: str) -> str:
    """Everything about one runner."""
    source = SOURCES / f"{runner}.py"
    what, rest = split(docstring(source))
    options = fields(source)
    names = [field for field, _, _ in options]
    head, explained = split(docstring(source, "Config"))
    if ":" in head:
        head, explained = "", f"{head}\n\n{explained}"
    rows = [(code(field), code(kind), code(default)) for field, kind, default in options]
    parts = [
        f"# {title(runner)}",
        inline(what),
        picture(runner),
        markdown(rest),
        "## Recipes",
        table(("id", "what", "paper"), [(f"[`{r.id}`](#{r.id})", cell(r.title), cell(r.source.paper)) for r in recipes(runner)]),
        "## Options",
        f"Keys of a recipe's table `[config]`; the defaults are those of the runner. {inline(head)}".strip(),
        table(("option", "type", "default"), rows),
        markdown(explained, names),
        "## Recipe by recipe",
        *map(section, recipes(runner)),
    ]  # fmt: skip
    return "\n\n".join(parts)


def picture(runner: str) -> str:
    """The runner's picture and how it was made, or what one would have shown."""
    entry = tomllib.loads((HERE / "pictures.toml").read_text("utf-8")).get(runner)
    if entry is None:
        return ""
    if "words" in entry:
        return f"**What a picture would show.** {entry['words']}"
    made = f" Made by `{entry['command']}`." if "command" in entry else ""
    return f"![{entry['alt']}](../images/{entry['image']})\n\n*{entry['caption']}{made}*"


def section(recipe: Recipe) -> str:
    """One recipe: what it is, its source, how to run it, what is published."""
    better = "higher" if recipe.best == "max" else "lower"
    data, view = recipe.dataset, recipe.view
    where = "shipped with evalkit" if data.shipped else f"`{data.folder}` below the data root"
    splits = {data.train, data.test}
    labelled = f", labels of {data.labelled.share:.0%}" if data.labelled and not data.labelled.list else ""
    labelled = f", labels of the list `{data.labelled.list}`" if data.labelled and data.labelled.list else labelled
    facts = [
        f"**Headline**: `{recipe.headline}`, {better} is better; version {recipe.version}"
        + (f"; needs {', '.join(recipe.needs)}" if recipe.needs else ""),
        f"**Source**: {source(recipe)}",
        f"**Data**: [{data.name}](../datasets.md#{data.name}), {where}, train on `{data.train}`, test on `{data.test}`{labelled}"
        + (f"; options {code(dict(data.config))}" if data.config else "")
        + "".join(f"; published `{s}`: {size.told()}" for s, size in published.splits(data).items() if s in splits),
        f"**View**: {'the encoder’s own size' if view.size == 'encoder' else f'{view.size} px'}"
        + (f", at most {view.at_most}" if view.at_most else "")
        + (", squashed to a square" if view.fit == "squash" else f", centre crop ({view.crop:g} of the short side)")
        + f", {view.interpolation}"
        + (f", border {view.border}" if view.border != "black" else ""),
    ]
    if recipe.config:
        facts.append("**Options**: " + ", ".join(code(f"{k} = {v}") for k, v in recipe.config.items()))
    root = "" if data.shipped else " --data-root DIR"
    command = f"```sh\nevalkit eval micro-mgc random pixels --recipe {recipe.id}{root}\n```"
    head = f"### {recipe.id} {{ #{recipe.id} data-toc-label='{recipe.id}' }}\n\n{inline(recipe.title)}"
    return "\n\n".join(filter(None, [head, "\n".join(f"- {fact}" for fact in facts), command, values(recipe)]))


def source(recipe: Recipe) -> str:
    """Paper, table, code and note, with links."""
    said = [recipe.source.paper, recipe.source.table, recipe.source.code, recipe.source.note]
    return "; ".join(inline(" ".join(part.split())) for part in said if part)


@cache
def _links() -> dict[str, list[tuple[PaperTable, Measure, str, printed.Printed]]]:
    """By recipe the printed values that it measures, as `evalkit describe` gives them, in one pass over all tables."""
    found: dict[str, list[tuple[PaperTable, Measure, str, printed.Printed]]] = {}
    for paper in map(catalog.paper_table, catalog.paper_tables()):
        for _, column, row in printed.cells(paper):
            first = {m.recipe: m for m in reversed(printed.fitting(column, row))}
            for measure in first.values():
                found.setdefault(measure.recipe, []).append((paper, measure, printed.score_of(measure, row), row))
    return found


def values(recipe: Recipe) -> str:
    """What papers print for it, folded."""
    rows = []
    for paper, measure, score, row in _links().get(recipe.id, []):
        what = [as_printed(row[k]) for k in ("method", "arch", "pretrain_data") if row[k]]
        epochs = f", {row['pretrain_epochs']} epochs" if row["pretrain_epochs"] else ""
        unit = " %" if row["unit"] == "percent" else f" {row['unit']}"
        note = "; ".join(filter(None, [row["note"], measure.differs and f"no difference is shown: {measure.differs}"]))
        rows.append((code(paper.id), cell(", ".join(what) + epochs), cell(f"{row['value']}{unit}"),
                     cell(" ".join(filter(None, [row["metric"], row["split_or_variant"]]))),
                     code(score or recipe.headline), cell(note)))  # fmt: skip
    for row in recipe.published:
        rows.append((cell(f"{row.get('paper', '')} {row.get('table', '')}"), cell(row.get("encoder", "")),
                     cell(f"{row.get('value', '')} {row.get('unit', '')}"), "", code(row.get("score", "")),
                     cell(row.get("note", ""))))  # fmt: skip
    if not rows:
        return ""
    head = ("table", "encoder", "printed", "metric", "our score", "note")
    return folded(f"Published values ({len(rows)})", table(head, rows))
