"""The docs site builds without a warning, needs no network, and has a page for everything that the catalogue has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from evalkit import adapters, catalog, datasets, runners
from tests.docs.blocks import ROOT

pytest.importorskip("material", reason="the docs site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the docs site needs the extra docs")
pytest.importorskip("latex2mathml", reason="the docs site needs the extra docs")

ASSETS = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src")}


class Page(HTMLParser):
    """What a page points at, what may be pointed at in it, and images without words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.ids: set[str] = set()
        self.wordless: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {value for name, value in attrs if name in ("id", "name") and value}
        for name in ("href", "src"):
            if given.get(name):
                outside = (tag, name) in ASSETS and given.get("rel") not in ("canonical", "next", "prev")
                (self.assets if outside else self.links).append(given[name])
        if tag == "img" and not (given.get("alt") or "").strip():
            self.wordless.append(given.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_internal_link_and_image_exists(site, pages):
    @cache
    def ids(path: Path) -> set[str]:
        return pages[path].ids if path in pages else set()

    wrong = []
    for path, page in pages.items():
        for target in (*page.links, *page.assets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.exists() or (parts.fragment and there.suffix == ".html" and parts.fragment not in ids(there)):
                wrong.append(f"{path.relative_to(site)}: {target}")
    assert not wrong


def test_nothing_is_fetched_from_a_network(site, pages):
    asked = {asset for page in pages.values() for asset in page.assets if re.match(r"(https?:)?//", asset)}
    assert not asked
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


def test_every_image_has_words(pages):
    assert not [(path.name, page.wordless) for path, page in pages.items() if page.wordless]


def test_everything_that_there_is_has_its_place(site, pages):
    for runner in runners.names():
        assert (site / f"protocols/{runner}.html").is_file()
    for recipe in map(catalog.recipe, catalog.recipes()):
        assert recipe.id in pages[site / f"protocols/{recipe.runner}.html"].ids
    zoo = [catalog.manifest(name) for name in catalog.manifests()]
    for family in adapters.names():
        text = (site / f"encoders/{family}.html").read_text("utf-8")
        assert [m.id for m in zoo if f"<code>{m.id}</code>" in text] == [m.id for m in zoo if m.family == family]
    assert set(datasets.names()) - {"fake"} <= pages[site / "datasets.html"].ids


def test_a_recipe_says_its_source_and_what_is_printed(site):
    text = (site / "protocols/knn.html").read_text("utf-8")
    recipe = catalog.recipe("knn-imagenet1k-mugs-s")
    assert recipe.source.paper.removeprefix("arXiv:") in text
    part = text.split('id="knn-imagenet1k-mugs-s"')[1].split("<h3")[0]
    assert "75.6 %" in part and "mugs-table1" in part


def test_the_picture_of_every_runner_is_there_or_described():
    import tomllib

    entries = tomllib.loads((ROOT / "docs/_make/pictures.toml").read_text("utf-8"))
    assert set(entries) == set(runners.names())
    for entry in entries.values():
        assert entry.keys() == {"words"} or len(entry["alt"]) > 20
        if "image" in entry:
            assert (ROOT / "docs/images" / entry["image"]).is_file()


def test_formulas_are_drawn_by_the_browser(site):
    text = (site / "pretraining.html").read_text("utf-8")
    assert text.count("<math") > 20
    assert "\\frac" not in text and "\\tau" not in text


def test_a_warning_fails_the_build(tmp_path):
    """A link to nowhere in a copy of the pages: what `--strict` is for."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# x\n\n[nowhere](nowhere.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    validation = settings[settings.index("validation:") : settings.index("nav:\n  - Start")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\n{validation}")
    words = [sys.executable, "-m", "mkdocs", "build"]
    built = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert built.returncode != 0
    assert "nowhere.md" in built.stdout + built.stderr
