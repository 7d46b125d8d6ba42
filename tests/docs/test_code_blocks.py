"""What README.md and docs/ tell people to type works: every block is run, or carries what it needs and is checked."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from pathlib import Path

import pytest

from evalkit import catalog
from evalkit.cli.main import main
from tests.docs.blocks import OTHERS, PAGES, ROOT, Block, blocks, check, check_inline, commands, inline


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One feature store for the whole file: pages measure the same few things."""
    return tmp_path_factory.mktemp("docs-cache")


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", words)
    code = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    assert not code, f"{' '.join(words)} ended with {code}: {capsys.readouterr().err}"


def written(block: Block, monkeypatch):
    """A block that is a file, in its place below the working folder; a module of evalkit can be imported from there."""
    path = Path(block.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, "utf-8")
    if path.suffix == ".py" and path.parts[0] == "evalkit":
        package = importlib.import_module(".".join(path.parts[:-1]))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(path.parent.resolve())])
        monkeypatch.delitem(sys.modules, ".".join(path.with_suffix("").parts), raising=False)


def named_above(block: Block) -> str:
    """The name of a TOML file: the last one in code on the line above it that ends with ":" or ","."""
    above = (ROOT / block.page).read_text("utf-8").splitlines()[: block.line - 1]
    line = next((text for text in reversed(above) if text.strip()), "")
    return next((word for word in reversed(line.split("`")) if word.endswith(".toml") and "/" not in word), "")


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs for b in blocks(p))])
def test_the_page_runs(page, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVALKIT_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").symlink_to(ROOT / "mini")
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "toml" and (name := named_above(block)):
            Path(name).write_text(block.text, "utf-8")
        if not block.runs:
            continue
        if block.title:
            written(block, monkeypatch)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), scope)
        else:
            for words in commands(block):
                assert words[0] == "evalkit", f"{block}: {words[0]} is not run here: say what it needs"
                run(words, monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_can_be_read(page):
    for block in blocks(page):
        check(block)
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page):
    for said in inline(page):
        check_inline(said)


@pytest.mark.parametrize("page", sorted(OTHERS))
def test_a_page_that_is_run_elsewhere_is_run_there(page):
    assert Path(page).name in (ROOT / OTHERS[page]).read_text("utf-8")


def test_whole_recipes_and_suites_are_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = []
    for block in (b for p in PAGES for b in blocks(p) if b.language == "toml"):
        keys = tomllib.loads(block.text).keys()
        if "runner" in keys or "columns" in keys:
            Path("x.toml").write_text(block.text, "utf-8")
            whole.append(catalog.file("x.toml"))
    assert len(whole) >= 2


def page(text: str) -> list[Block]:
    return blocks("docs/x.md", text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evalkit eval micro-dino --recipe mini-knn-ccp-itmes", "recipe 'mini-knn-ccp-itmes'"),
        ("evalkit eval micro-dino --recipes mini-knn-ccp-items", "--recipes"),
        ("evalkit eval micro-dyno --suite mini", "checkpoint 'micro-dyno'"),
        ("evalkit eval x.pth --suite minni", "suite 'minni'"),
        ("evalkit eval x.pth --family dyno --suite mini", "family 'dyno'"),
        ("evalkit eval x.pth --precision fp61 --suite mini", "fp61"),
        ("evalkit table mugs-table0", "suite 'mugs-table0'"),
        ("evalkit describe knn-imagenet", "name 'knn-imagenet'"),
        ("evalkit pretrain muggs --preset micro", "method 'muggs'"),
        ("evalkit data verify cifar11", "dataset 'cifar11'"),
        ("evalkit fetch dino-s17", "'dino-s17'"),
        ("evalkit show heat micro-dino", "no command 'heat'"),
        ("evalkit evaluate micro-dino", "no command 'evaluate'"),
        ("make demos", "no target demos"),
        ("curl example.org", "commands are"),
    ],
)
def test_a_wrong_word_in_a_block_is_caught(line, message):
    for text in (f"```sh\n{line}\n```\n", f'```sh needs="a GPU"\n{line}\n```\n', f"```console\n$ {line}\n```\n"):
        with pytest.raises(ValueError, match=message):
            check(page(text)[0])


def test_wrong_blocks_are_caught():
    with pytest.raises(ValueError, match="language"):
        check(page("```ruby\nputs 1\n```\n")[0])
    with pytest.raises(ValueError, match="language"):
        check(page("```\nanything\n```\n")[0])
    with pytest.raises(ValueError, match="block of text"):
        check(page("```text\nevalkit table mini\n```\n")[0])
    with pytest.raises(ValueError, match="marks are"):
        page('```sh skip="yes"\nevalkit table mini\n```\n')
    with pytest.raises(ValueError, match="no option --recipes"):
        check_inline("evalkit eval --recipes X")
    assert [b.runs for b in page('```sh\nx\n```\n```sh needs="y"\nx\n```\n```text\nx\n```\n')] == [True, False, False]
