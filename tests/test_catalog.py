"""Recipes, manifests and suites: every shipped file is valid, and wrong ones are answered with file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit import catalog, datasets, runners
from evalkit.errors import CatalogError, NotFetched, UnknownName
from evalkit.types import Recipe

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


def reads_stored_patches(recipe: Recipe) -> bool:
    pooling = recipe.config.get("pooling", ())
    return (
        recipe.runner in ("attentive", "hummingbird", "prompt", "similarity")
        or "patches" in ([pooling] if isinstance(pooling, str) else pooling)
        or (recipe.runner == "segmentation" and recipe.config.get("mode") == "cached")
    )


def test_recipes_that_read_stored_patch_tokens_say_their_precision() -> None:
    """No published code rounds them to half precision; the store does."""
    found = [recipe for recipe in map(catalog.recipe, catalog.recipes()) if reads_stored_patches(recipe)]
    assert len(found) > 15
    assert [recipe.id for recipe in found if "float16" not in recipe.source.note] == []


def test_the_prompt_is_scored_at_the_thresholds_of_the_papers_text_and_of_its_table() -> None:
    paper, mini = catalog.recipe("prompt-coco"), catalog.recipe("mini-prompt-coco")
    assert list(paper.config["thresholds"]) == list(mini.config["thresholds"]) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert list(paper.config["candidates"]) == [number / 10 for number in range(10)]
    assert list(mini.config["candidates"])[:10] == list(paper.config["candidates"])
    assert max(mini.config["candidates"]) > 0.99


@pytest.mark.parametrize("name", catalog.manifests())
def test_every_manifest_says_where_it_comes_from_and_how_its_authors_feed_it(name: str) -> None:
    manifest = catalog.manifest(name)
    assert manifest.title and manifest.origin and manifest.preprocessing.source
    if manifest.control:
        return
    assert manifest.licence and manifest.paper.startswith("arXiv:")
    assert manifest.shipped == bool(manifest.sha256 and not manifest.url)
    assert manifest.shipped or manifest.url or catalog.by_hand(manifest)
    assert manifest.url.startswith("https://") or not manifest.url


@pytest.mark.parametrize("name", catalog.manifests())
def test_every_manifest_names_a_family_an_architecture_and_a_network_that_exist(name: str) -> None:
    from evalkit import adapters

    manifest = catalog.manifest(name)
    assert manifest.family in adapters.names()
    family = adapters.module(manifest.family)
    assert manifest.arch in family.ARCHITECTURES
    layout = getattr(getattr(family, "FAMILY", None), "layout", None)
    assert layout is None or not manifest.network or manifest.network in layout.networks


@pytest.mark.parametrize("name", catalog.manifests())
def test_what_papers_print_of_a_checkpoint_is_found(name: str) -> None:
    selector = catalog.manifest(name).published_as
    if selector is not None:
        rows = catalog.published(selector)
        assert rows
        for key, asked in (("pretrain_epochs", selector.pretrain_epochs), ("paper", selector.papers)):
            assert {row[key] for row in rows} >= set(asked)  # nothing is asked for in vain
        assert {row["table"] for row in rows} >= set(selector.tables)


def test_no_printed_number_belongs_to_two_checkpoints() -> None:
    taken: dict[tuple[str, ...], str] = {}
    for name in catalog.manifests():
        selector = catalog.manifest(name).published_as
        for row in catalog.published(selector) if selector else ():
            assert taken.setdefault(tuple(row.values()), name) == name


@pytest.mark.parametrize("name", [n for n in catalog.manifests() if catalog.by_hand(catalog.manifest(n))])
def test_what_people_have_to_get_is_said_with_the_page_and_the_command(name: str) -> None:
    manifest = catalog.manifest(name)
    with pytest.raises(NotFetched) as caught:
        catalog.weights(name)
    for part in (manifest.notes, manifest.origin, f"evalkit fetch {name} --from FILE"):
        assert part and part in str(caught.value)


MANIFEST = """
family = "dino"
arch = "vit_micro_patch8_64"
url = "https://host/zoo/vit.pth"
sha256_prefix = "abcd"
"""


def test_weights_with_an_address_lie_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MANIFEST)
    manifest = catalog.manifest(str(path))
    place = Path(manifest.file)
    assert place.name == "vit.pth" and place.is_relative_to(catalog.cache_root() / "checkpoints")
    with pytest.raises(NotFetched, match=f"run: evalkit fetch {path}"):
        catalog.weights(str(path))
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert catalog.weights(str(path)) == place
    place.with_name("vit.pth.sha256").write_text("0" * 64 + "  vit.pth\n")
    assert catalog.manifest(str(path)).sha256 == "0" * 64
    assert not catalog.states_digest(str(path))


def test_another_address_is_another_file_and_one_address_is_one(tmp_path: Path) -> None:
    def place(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return catalog.manifest(str(path)).file

    first = place("one.toml", MANIFEST)
    assert place("two.toml", MANIFEST + 'network = "student"\n') == first
    assert place("one.toml", MANIFEST.replace("host", "another")) != first
    assert Path(place("one.toml", MANIFEST + 'file = "other.pth"\n')).name == "other.pth"


def test_a_control_and_a_shipped_encoder_need_no_download() -> None:
    assert catalog.weights("random") is None
    found = catalog.weights("micro-dino")
    assert found is not None and found.is_file()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"abcd"', '"ABCD"', "'sha256_prefix' is 'ABCD': it is 4 to 64 hexadecimal digits in small letters"),
        ('"abcd"', '"abcd"\nsha256 = "ab"', "'sha256' is 'ab': it is 64 hexadecimal digits"),
        ('"abcd"', f'"abcd"\nsha256 = "{"0" * 64}"', "does not begin with sha256_prefix abcd"),
        ('"abcd"', '"abcd"\nmd5_prefix = "xyz1"', "'md5_prefix' is 'xyz1'"),
        ('"abcd"', '"abcd"\nsize = -1', "'size' is -1"),
        ("https:", "ftp:", "it is an https, http or file address"),
        ("https://host/zoo/vit.pth", "vit.pth", "it is an https, http or file address"),
        ("zoo/vit.pth", "", "it ends in no name; give one with 'file'"),
        ('"abcd"', '"abcd"\nfile = "a/b.pth"', "beside 'url' it is a name in the cache, without folders"),
        ('"abcd"', '"abcd"\n[published_as]\nmethod = "dino"', "key 'published_as.arch' is missing"),
        (
            '"abcd"',
            '"abcd"\n[published_as]\nmethod = "d"\narch = "a"\npretrain_data = "p"\nepochs = 1',
            "allowed: method, arch, pretrain_data",
        ),
    ],
)
def test_a_wrong_manifest_is_answered_with_file_key_and_what_is_allowed(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    assert before in MANIFEST
    path.write_text(MANIFEST.replace(before, after, 1))
    with pytest.raises(CatalogError) as caught:
        catalog.manifest(str(path))
    assert str(path) in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("name", catalog.suites())
def test_every_suite_holds_recipes_that_exist(name: str) -> None:
    suite = catalog.suite(name)
    assert suite.columns or catalog.is_paper_table(name)
    assert {c.recipe for c in suite.columns} <= set(catalog.recipes())


def test_the_suite_of_a_papers_table_holds_the_recipes_that_measure_it() -> None:
    table = catalog.paper_table("mugs-table1")
    asked = {m.recipe for column in table.columns for m in column.measures}
    suite = catalog.suite("mugs-table1")
    assert (suite.id, suite.title) == (table.id, table.title)
    assert {c.recipe for c in suite.columns} == asked & set(catalog.recipes()) and "knn-imagenet1k" in asked
    assert "mugs-table1" in catalog.paper_tables() and "demo" not in catalog.paper_tables()


PAPER_TABLE = """
title = "t"
paper = "mugs"
table = "Table 1"
stubs = ["method"]
rows = [{ method = "dino", blank = ["k-NN"] }]
[[columns]]
title = "linear"
protocol = "linear_probe"
dataset = "imagenet1k"
metric = "top1"
measures = [{ recipe = "not-written-yet" }]
[[columns]]
title = "k-NN"
protocol = "knn"
dataset = "imagenet1k"
metric = "top1"
"""


def test_a_papers_table_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PAPER_TABLE)
    assert catalog.is_paper_table(str(path))
    assert [c.title for c in catalog.paper_table(str(path)).columns] == ["linear", "k-NN"]
    assert catalog.suite(str(path)).columns == ()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('title = "k-NN"', 'title = "linear"', "two columns have the same title"),
        ('blank = ["k-NN"]', 'blank = ["k-NN", "linear"]', "a row is blank in every column"),
        ('blank = ["k-NN"]', 'blank = ["knn"]', "blank names knn, but the columns are linear, k-NN"),
        ('method = "dino"', 'methods = "dino"', "unknown key 'rows.0.methods'; did you mean 'method'"),
        ('stubs = ["method"]', "", "key 'stubs' is missing"),
        ('title = "t"', 'title = "t"\nid = "x"', "key 'id' is not written in the file"),
        (
            "[[columns]]",
            '[[networks]]\nencoder = "dino-s"\nmethod = "dino"\nwhy = "w"\n[[columns]]',
            "no encoder named 'dino-s'",
        ),
    ],
)
def test_a_wrong_table_of_a_paper_is_answered_with_file_key_and_what_is_allowed(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    assert before in PAPER_TABLE
    path.write_text(PAPER_TABLE.replace(before, after, 1))
    with pytest.raises(CatalogError) as caught:
        catalog.paper_table(str(path))
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_an_encoder_is_found_by_the_number_that_a_paper_prints_for_it() -> None:
    rows = {(r["paper"], r["table"], r["method"], r["value"]): r for r in catalog.papers()}
    assert catalog.encoder_of(rows["mugs", "Table 1", "dino", "78.2"]) == "dino-b16"
    assert catalog.encoder_of(rows["mugs", "Table 1", "simclr", "69.3"]) == ""


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
