"""Docstrings and catalogue entries as Markdown: the house's docstrings are prose with aligned labels and indented layouts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

LABEL = re.compile(r"^([A-Z][\w ]{0,14}):(?: +|$)(.*)")
TOPIC = re.compile(r"^(Files|Network|Source|Splits|The (?:\w+ )?network|Layout)\b[^:.]*:? ")
ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")
CODE = re.compile(r"\b([A-Za-z0-9][\w-]+/[\w.-]+) ([0-9a-f]{7})\b")


def docstring(path: Path, name: str = "") -> str:
    """The docstring of a module, or of a class or function at its top, read without importing it."""
    tree = ast.parse(path.read_text("utf-8"))
    if not name:
        return ast.get_docstring(tree) or ""
    return ast.get_docstring(_top(tree, name)) or ""


def fields(path: Path, name: str = "Config") -> list[tuple[str, str, str]]:
    """(name, type, default) of a dataclass, as its source says them."""
    try:
        body = _top(ast.parse(path.read_text("utf-8")), name).body
    except LookupError:
        return []
    return [
        (ast.unparse(line.target), _plain_type(line.annotation), ast.unparse(line.value) if line.value else "")
        for line in body
        if isinstance(line, ast.AnnAssign)
    ]


def _plain_type(annotation: ast.expr) -> str:
    text = re.sub(r"Annotated\[(\w+), Field\((.*?)\)\]", r"\1 (\2)", ast.unparse(annotation))
    return text.replace("pool.", "").replace("schedules.", "").replace(", allow_inf_nan=False", "")


def _top(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
    raise LookupError(name)


def split(text: str) -> tuple[str, str]:
    """A docstring's first paragraph as one line, and the rest."""
    head, _, rest = text.partition("\n\n")
    return " ".join(head.split()), rest


def markdown(text: str, names: Iterable[str] = ()) -> str:
    """A docstring's body as Markdown.

    Aligned labels ("Source: ...") become entries of a list, blocks indented by four stay as they are, and where a text
    explains fields ("rate: 0.4 at batch 8192"), the fields of `names` are set as code, each on a line of its own.
    """
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if not lines:
            continue
        if all(line.startswith("    ") for line in lines):
            out.append("\n".join(["```text", *(line[4:] for line in lines), "```"]))
        elif any(LABEL.match(line) and _aligned(lines, at) for at, line in enumerate(lines)):
            out.append(_labelled(lines))
        else:
            out += _with_blocks(lines, tuple(names))
    return "\n\n".join(out)


def _aligned(lines: Sequence[str], at: int) -> bool:
    """Whether a labelled line is followed by its own continuation, by another label or by nothing."""
    following = lines[at + 1] if at + 1 < len(lines) else ""
    return not following or following.startswith("   ") or LABEL.match(following) is not None


def _labelled(lines: Sequence[str]) -> str:
    out: list[str] = []
    for line in lines:
        if found := LABEL.match(line):
            out.append(f"- **{found[1]}**: {inline(found[2])}")
        elif not out:
            out.append(inline(line) + "\n")
        elif line.startswith("   "):
            out[-1] += "\n    " + inline(line.strip())
        else:
            out.append("\n" + inline(line))
    return "\n".join(out)


def _with_blocks(lines: Sequence[str], names: tuple[str, ...]) -> list[str]:
    """Prose in which a formula or a layout may stand indented, or a list begin."""
    out: list[str] = []
    block: list[str] = []
    prose: list[str] = []

    def close() -> None:
        if prose:
            out.append(explained("\n".join(prose), names))
            prose.clear()
        if block:
            out.append("\n".join(["```text", *block, "```"]))
            block.clear()

    for line in lines:
        if line.startswith("    "):
            if prose:
                close()
            block.append(line[4:])
            continue
        if block:
            close()
        if prose and TOPIC.match(line):
            close()
        listed = bool(prose) and prose[0].startswith("- ")
        if prose and listed != line.startswith(("- ", "  ")):
            close()
        prose.append(line)
    close()
    return out


def explained(text: str, names: tuple[str, ...]) -> str:
    """Inline text, the fields that it explains set as code and each on a new line."""
    text = inline(text)
    if not names:
        return text
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    text = re.sub(rf"(?<![\w`.])((?:{one})(?:, (?:{one}))*)(?=:\s)", r"**`\1`**", text)
    text = re.sub(r"[;]\s+(?=\*\*`)", ".\n\n", text)
    return re.sub(r"(?<=\.)\s+(?=\*\*`|Raises )", "\n\n", text)


def inline(text: str) -> str:
    """Text outside code: angle brackets and stars are meant as such; arXiv ids and commits become links."""
    pieces = re.split(r"(`+[^`]*`+)", text)
    for at in range(0, len(pieces), 2):
        plain = pieces[at].replace("<", "&lt;").replace("*", r"\*").replace("$", r"\$")
        plain = re.sub(r"\{([^{}\s]+)\}", lambda m: m[0].replace("_", r"\_"), plain)
        plain = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)
        pieces[at] = CODE.sub(r"[\1 \2](https://github.com/\1/tree/\2)", plain)
    return "".join(pieces)


def cell(text: object) -> str:
    """A cell of a table: one line, no bars."""
    return inline(" ".join(str(text).split())).replace("|", r"\|")


def code(text: object) -> str:
    """Text set as code; bars within it end no cell."""
    return f"`{text}`" if str(text) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of finished cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, body: str) -> str:
    """A block that opens by a click."""
    return f'??? note "{title}"\n\n' + "\n".join(f"    {line}" if line else "" for line in body.splitlines())
