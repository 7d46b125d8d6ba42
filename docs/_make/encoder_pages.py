"""One page per family of checkpoints: layouts, architectures, what is left out and why, and what was released."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import known
from prose import cell, code, docstring, inline, markdown, split, table

from evalkit import adapters, catalog
from evalkit.types import Manifest

SOURCES = Path(adapters.__file__).parent
CONTROLS = ("random", "pixels", "fake")


def order() -> list[str]:
    """Families of files, then the controls."""
    return [*(f for f in adapters.names() if f not in CONTROLS), *(c for c in CONTROLS if c in adapters.names())]


def pages() -> Iterator[tuple[str, str]]:
    """(path, Markdown) of the overview and of every family's page."""
    yield "encoders/index.md", overview()
    for family in order():
        yield f"encoders/{family}.md", page(family)


def manifests(family: str) -> list[Manifest]:
    """The zoo's checkpoints of a family."""
    return [m for m in known.manifests() if m.family == family]


def overview() -> str:
    """A line per family."""
    rows = []
    for family in order():
        what, _ = split(docstring(SOURCES / f"{family}.py"))
        rows.append(
            (f"[`{family}`]({family}.md)", inline(what), str(len(manifests(family)) or "") if family != "fake" else "")
        )
    return "\n\n".join([
        "# Encoders",
        "An adapter reads the checkpoint files of one family and makes an encoder of them. Every key of a file is used, or "
        "dropped by a rule with a name, or the file is refused with a list of what differs; no code of a file is run. Each "
        "family of such files agrees, in float64 to 1e-9 and at three image sizes, with a plain implementation of its "
        "released forward pass that shares no code with evalkit (`tests/adapters/oracles/`); `timm` is timm's own. These "
        "pages are made from the adapters and from `model_zoo/*.toml`.",
        "`evalkit inspect FILE` says which family a file is of, `evalkit list encoders` which checkpoints are known.",
        table(("family", "what it reads", "checkpoints"), rows),
        "Your own: [a checkpoint of these families](../add-a-checkpoint.md), [a new family](../add-a-family.md).",
    ])  # fmt: skip


def page(family: str) -> str:
    """Everything about one family."""
    what, rest = split(docstring(SOURCES / f"{family}.py"))
    module = adapters.module(family)
    made = getattr(module, "FAMILY", None)
    parts = [f"# {family}", inline(what), markdown(rest), "## Architectures", architectures(module.ARCHITECTURES)]
    if made is not None:
        parts += ["## Where networks lie in a file", networks(made.layout), "## What is left out, and why", rules(made.layout),
                  f"Pixels are normalised as in {inline(made.source)}."]  # fmt: skip
    return "\n\n".join([*parts, "## Checkpoints", checkpoints(family)])


def architectures(there: Any) -> str:
    """Sizes where they are the shared transformer's, names otherwise."""
    if not hasattr(there, "items"):
        some = sorted(there)
        if len(some) > 12:
            return f"{len(some)} names, among them {', '.join(map(code, some[:: len(some) // 8]))}."
        return ", ".join(map(code, some))
    rows = [
        (code(name), *map(str, (c.dim, c.depth, c.heads, c.patch, c.size)), str(c.registers or ""))
        for name, c in there.items()
    ]
    return table(("arch", "width", "blocks", "heads", "patch", "native size", "further tokens"), rows)


def networks(layout: Any) -> str:
    """The networks of a file, the one that papers evaluate first."""
    rows = []
    for name, places in layout.networks.items():
        said = [
            f"entry {code(p.entry or 'top level')}" + (f", keys {code(p.prefix + '...')}" if p.prefix else "")
            for p in places
        ]
        rows.append((code(name), "; ".join(said)))
    bare = ", ".join(map(code, layout.entries))
    beside = f" or under the entry {bare}" if bare else ""
    lone = f"A file that holds one network and does not say which has its keys at the top level{beside}."
    if not rows:
        return lone
    return table(("network (`--network`)", "where"), rows) + "\n\nThe first is taken unless another is named. " + lone


def rules(layout: Any) -> str:
    """The rules by which keys are dropped."""
    rows = [(cell(r.name), cell(r.reason), code(r.pattern)) for r in (*layout.drop, *layout.outside)]
    if not rows:
        return "Nothing: every key of a network is used."
    return table(("rule", "why", "keys (whole)"), rows) + "\n\nAny other key that is not used is an error."


def checkpoints(family: str) -> str:
    """What the zoo knows of a family."""
    found = manifests(family)
    if not found:
        if not getattr(adapters.module(family), "NEEDS_FILE", True):
            return "None: it needs no file."
        arch = " --arch NAME" if family == "timm" else ""
        return f"None in the zoo: give a file, `evalkit eval FILE --family {family}{arch}`."
    rows = []
    for m in found:
        said = cell(m.title) + (f"<br><small>{cell(m.notes)}</small>" if m.notes else "")
        rows.append((code(m.id), said, code(m.arch), code(m.network), cell(m.licence), where(m)))
    return table(("id", "what", "arch", "network", "licence of the weights", "from"), rows)


def where(manifest: Manifest) -> str:
    """Where the file comes from."""
    if manifest.control:
        return "needs no file"
    if manifest.shipped:
        return "travels with evalkit"
    address = manifest.url or manifest.origin
    if catalog.by_hand(manifest):
        return f"[by hand]({address})" if address.startswith("http") else "by hand: " + cell(address)
    return f"[{address.rsplit('/', 1)[-1].split('?')[0]}]({address})"
