"""Recipes, manifests and suites: every shipped file is valid, and wrong ones are answered with file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit import catalog, datasets, runners
from evalkit.errors import CatalogError, UnknownName

RECIPE = """
version = 1
title = "t"
runner = "knn"
headline = "top1@k=1"
[source]
paper = "arXiv:2104.14294"
[dataset]
name = "fake"
folder = "fake"
"""


@pytest.mark.parametrize("name", catalog.recipes())
def test_every_recipe_names_a_runner_a_dataset_and_options_that_exist(name: str) -> None:
    recipe = catalog.recipe(name)
    runners.configure(recipe.runner, recipe.config)
    datasets.configure(recipe.dataset)
    assert recipe.source.paper


@pytest.mark.parametrize("name", catalog.manifests())
def test_every_manifest_names_a_family_and_says_where_it_comes_from(name: str) -> None:
    from evalkit import adapters

    manifest = catalog.manifest(name)
    assert manifest.family in adapters.names()
    assert manifest.control or (manifest.licence and manifest.sha256)


@pytest.mark.parametrize("name", catalog.suites())
def test_every_suite_holds_recipes_that_exist(name: str) -> None:
    assert catalog.suite(name).columns


def test_a_recipe_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    assert catalog.recipe(str(path)).id == "mine"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("runner =", "runer =", ["unknown key 'runer'", "did you mean 'runner'", "allowed: id, version"]),
        ("version = 1", 'version = "1"', ["key 'version' is '1'", "integer"]),
        ("version = 1", "", ["key 'version' is missing"]),
        ('folder = "fake"', 'folder = "fake"\nrot = 1', ["unknown key 'dataset.rot'", "allowed: name, folder"]),
        ("version = 1", "version =", ["not a TOML file"]),
        ("version = 1", 'version = 1\nid = "x"', ["key 'id' is not written in the file"]),
        ('paper = "arXiv:2104.14294"', "paper = 3", ["key 'source.paper' is 3", "string"]),
    ],
)
def test_a_wrong_recipe_is_answered_with_file_key_and_what_is_allowed(
    tmp_path: Path, before: str, after: str, said: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    assert before in RECIPE
    path.write_text(RECIPE.replace(before, after, 1))
    with pytest.raises(CatalogError) as caught:
        catalog.recipe(str(path))
    for part in [str(path), *said]:
        assert part in str(caught.value)


def test_wrong_runner_options_name_the_key() -> None:
    with pytest.raises(CatalogError, match=r"temprature.*temperature"):
        runners.configure("knn", {"temprature": 0.07})
    with pytest.raises(CatalogError, match="temperature"):
        runners.configure("knn", {"temperature": "warm"})


@pytest.mark.parametrize("find", [catalog.recipe, catalog.manifest, catalog.suite])
def test_an_unknown_name_gets_the_nearest(find: object) -> None:
    near = {"recipe": "mini-knn-ccp-item", "manifest": "randon", "suite": "dem"}[find.__name__]  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="Did you mean"):
        find(near)  # type: ignore[operator]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such recipe file"):
        catalog.recipe(str(tmp_path / "none.toml"))


def test_the_digest_follows_what_changes_numbers_and_nothing_else(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return catalog.recipe(str(path)).digest

    same = digest(RECIPE)
    assert digest(RECIPE.replace('title = "t"', 'title = "another"')) == same
    assert digest(RECIPE.replace("version = 1", "version = 2")) != same
    assert digest(RECIPE + "[config]\nks = [1]\n") != same
