"""The API reference: a page per group of modules, filled from docstrings when the site is built."""

from __future__ import annotations

import ast
from pathlib import Path

from prose import docstring, inline, split, table

import evalkit

ROOT = Path(evalkit.__file__).parent
GROUPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "running": ("Running", "Load an encoder, measure it, read the record.",
                ("engine.evaluate", "engine.repeat", "records", "catalog", "errors")),
    "types": ("Types", "The contracts: what encoders, data sets, features, jobs and scores are.", ("types.words", "types.*")),
    "adapters": ("Adapters", "From a checkpoint file to an encoder. The families have [pages of their own](../encoders/index.md).",
                 ("adapters", "adapters.family", "adapters.loading", "adapters.files", "adapters.vit", "adapters.encoder",
                  "adapters.positions", "adapters.heads", "adapters.inspection")),
    "datasets": ("Data sets", "From a folder to samples. The readers have [a page of their own](../datasets.md).",
                 ("datasets", "datasets.listing", "datasets.files", "datasets.images")),
    "features": ("Features", "From images to stored features.", ("features.*",)),
    "metrics": ("Metrics", "Pure functions on arrays and tensors; no files, no models.", ("metrics.*",)),
    "probing": ("Probing", "What several runners train with.", ("probing.*",)),
    "runners": ("Runners", "`run(job)` and the arithmetic of each protocol as plain functions. What they measure is "
                "on [the pages of the protocols](../protocols/index.md).", ("runners", "runners.*")),
    "reporting": ("Reporting", "From records to tables, comparisons and the gate.",
                  ("reporting.compare", "reporting.comparable", "reporting.table", "reporting.paper", "reporting.regress")),
    "pretrain": ("Pretraining", "Losses, augmentation and the trainer. How to use them is on [its page](../pretraining.md).",
                 ("pretrain.*", "pretrain.methods.*")),
}  # fmt: skip
"""Group: title, a line about it, modules below evalkit; `x.*` is every module of a folder."""


def modules(group: str) -> list[str]:
    """The dotted names of a group's modules that have something public."""
    found: list[str] = []
    for name in GROUPS[group][2]:
        if not name.endswith(".*"):
            found.append(f"evalkit.{name}")
            continue
        folder = ROOT / name[:-2].replace(".", "/")
        found += [
            f"evalkit.{name[:-2]}.{p.stem}" for p in sorted(folder.glob("*.py")) if p.stem != "__init__" and _public(p)
        ]
    return found


def _public(path: Path) -> bool:
    body = ast.parse(path.read_text("utf-8")).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in body)


def pages() -> list[tuple[str, str]]:
    """(path, Markdown) of the overview and of every group's page."""
    rows = []
    for group, (title, line, _) in GROUPS.items():
        listed = ", ".join(f"`{name.removeprefix('evalkit.')}`" for name in modules(group))
        rows.append((f"[{title}]({group}.md)", line, listed))
    text = (
        "# API reference\n\nMade from the docstrings. `import evalkit` gives `load`, `evaluate`, `Options` and the types, and "
        "imports torch only when one of them is used.\n\n"
    )
    return [("reference/index.md", text + table(("group", "what is in it", "modules"), rows)), *map(_page, GROUPS)]


def _page(group: str) -> tuple[str, str]:
    title, line, _ = GROUPS[group]
    parts = [f"# {title}", line]
    for module in modules(group):
        path = ROOT / module.removeprefix("evalkit.").replace(".", "/")
        what, _ = split(
            docstring(path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py")
        )
        parts.append(
            f"## {module} {{ #{module} data-toc-label='{module.removeprefix('evalkit.')}' }}\n\n{inline(what)}"
        )
        parts.append(
            f"::: {module}\n    options:\n      show_root_toc_entry: false\n      show_docstring_description: true"
        )
    return f"reference/{group}.md", "\n\n".join(parts)
