"""What mkdocs does beside its usual work: generated pages, the menu, links out of docs/, formulas as MathML.

Nothing of the site comes from a network: formulas are MathML, made here; fonts are the system's; search runs in the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import command_pages
import dataset_pages
import encoder_pages
import protocol_pages
import reference_pages
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r'^(```\w+) needs="([^"]*)"$', re.MULTILINE)
OUT = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """The generated pages take their places in the menu; a page that is not there yet is left out."""
    config["nav"] = [entry for entry in map(_entry, config["nav"]) if entry]
    return config


def _entry(entry: Mapping[str, Any] | str) -> dict[str, Any] | None:
    ((name, target),) = entry.items() if isinstance(entry, Mapping) else (("", entry),)
    if isinstance(target, list):
        return {name: [e for e in map(_entry, target) if e]}
    if target in _MENUS:
        return {name: _MENUS[target]()}
    there = target in _GENERATED or (ROOT / "docs" / target).is_file()
    return {name: target} if there else None


_GENERATED = ("commands.md", "datasets.md")
_MENUS = {
    "protocols/": lambda: [
        {"All": "protocols/index.md"},
        *({protocol_pages.title(r): f"protocols/{r}.md"} for r in protocol_pages.order()),
    ],
    "encoders/": lambda: [{"All": "encoders/index.md"}, *({f: f"encoders/{f}.md"} for f in encoder_pages.order())],
    "reference/": lambda: [
        {"All": "reference/index.md"},
        *({title: f"reference/{g}.md"} for g, (title, _, _) in reference_pages.GROUPS.items()),
    ],
}


def on_files(files: Any, config: Any) -> Any:
    """Pages that are made from the catalogue, the adapters, the readers, the program and the docstrings."""
    for maker in (protocol_pages, encoder_pages, dataset_pages, command_pages, reference_pages):
        for path, text in maker.pages():
            files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The README's table where a page asks for it; what a block needs as its title; files outside docs/ by their path."""
    markdown = markdown.replace("<!-- readme: demo -->", _demo())
    markdown = "\n".join(_lists(markdown.splitlines()))
    markdown = MARK.sub(r'\1 title="needs: \2"', markdown)
    return OUT.sub(lambda found: _outside(found, page), markdown)


def _lists(lines: list[str]) -> Iterator[str]:
    """A list may begin under a line of text, as in the Markdown of repositories; here it needs an empty line."""
    before, code = "", False
    for line in lines:
        code ^= line.lstrip().startswith("```")
        if not code and line.startswith("- ") and before and not before.startswith(("- ", " ")):
            yield ""
        yield line
        before = line


def _demo() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"<!-- demo -->\n(.*?)<!-- /demo -->", text, re.DOTALL)
    return found[1].replace("#### ", "**", 1).replace("\n\n|", "**\n\n|", 1) if found else ""


def _outside(found: re.Match[str], page: Any) -> str:
    """A link to a file of the repository that is no page: its path as code, since a copy of the site has no such file."""
    target = (ROOT / "docs" / page.file.src_uri).parent / found[2]
    resolved = target.resolve()
    if not resolved.is_relative_to(ROOT) or resolved.is_relative_to(ROOT / "docs") or not resolved.exists():
        return found[0]
    path = resolved.relative_to(ROOT).as_posix()
    said = found[1].strip("`")
    return f"`{path}`" if said in path else f"{found[1]} (`{path}`)"


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """LaTeX becomes MathML, which browsers draw by themselves."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return convert(html.unescape(found[3]), display="inline" if found[2] == "(" else "block")
