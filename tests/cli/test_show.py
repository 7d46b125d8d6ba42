"""`evalkit show`: what a user types, the picture that is written, and what it says of wrong questions."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.cli import show
from evalkit.cli.main import main
from evalkit.reporting.figures import canvas
from tests.datasets.dataset_makers import class_tree, encoded, folder

FAKE = 'family = "fake"\narch = "{arch}"\ncontrol = true\n[preprocessing]\nsize = 32\n'
RECIPE = """
version = 1
title = "fake {runner}"
runner = "{runner}"
headline = "mAP"
[source]
paper = "none"
[dataset]
name = "fake"
folder = "fake"
[dataset.config]
classes = 3
per_class = 6
[view]
size = "encoder"
fit = "squash"
[config]
"""


def pixels(path: Path) -> np.ndarray:
    """(N, 3) of a picture."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).reshape(-1, 3)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests and recipes of one's own in the working directory, and a folder of photos."""
    (tmp_path / "fake.toml").write_text(FAKE.format(arch="fake_patch8"))
    (tmp_path / "retrieval.toml").write_text(RECIPE.format(runner="retrieval"))
    (tmp_path / "both.toml").write_text(RECIPE.format(runner="retrieval") + 'roles = ["train", "test"]\n')
    (tmp_path / "knn.toml").write_text(RECIPE.format(runner="knn") + "ks = [1]\n")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (90, 80, 3), dtype=np.uint8)) for _ in range(3)]
    folder(tmp_path / "photos", {f"{i}.png": encoded(image) for i, image in enumerate(images)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def evalkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize("name", show.names())
def test_every_module_has_a_documented_show(name: str):
    function = importlib.import_module(f"evalkit.cli.show.{name}").show
    assert inspect.getdoc(function)
    assert all(p.default is not p.empty or p.annotation for p in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", show.names())
def test_every_picture_explains_its_options(evalkit, name: str):
    code, out, _ = evalkit("show", name.replace("_", "-"), "--help")
    assert code == 0
    assert "--out" in out


PARTS = ("show", "part-retrieval", "fake.toml", "--data", "fake=.", "--out", "a.png")


@pytest.mark.parametrize("top", [1, 5, 48])
def test_part_retrieval_writes_a_picture(desk: Path, evalkit, top: int):
    code, out, err = evalkit(*PARTS, "--recipe", "retrieval.toml", "--top", top, "--seed", 1)
    assert (code, err) == (0, "") or code == 0
    assert out.startswith("a.png: query ")
    assert (pixels(desk / "a.png") == canvas.RIGHT.colour).all(axis=1).any()


def test_the_first_neighbours_of_a_certain_encoder_are_right(desk: Path, evalkit, monkeypatch: pytest.MonkeyPatch):
    from evalkit.reporting.figures import gallery

    drawn = []
    real = gallery.gallery
    monkeypatch.setattr(
        gallery, "gallery", lambda query, blocks, **rest: drawn.append((blocks, rest)) or real(query, blocks, **rest)
    )
    assert evalkit(*PARTS, "--recipe", "retrieval.toml", "--query", "random", "--top", 8)[0] == 0
    ((blocks, rest),) = drawn
    right = [n.right for n in blocks[0].neighbours]
    assert right == [True] * 5 + [False] * 3  # five others of its class
    similarity = [n.similarity for n in blocks[0].neighbours]
    assert similarity == sorted(similarity, reverse=True)
    assert "average precision of this query 100.0 %" in blocks[0].note
    assert rest["caption"].split("\n")[0] == blocks[0].neighbours[0].name


def test_a_query_can_be_named_with_its_split(desk: Path, evalkit):
    _, out, _ = evalkit(*PARTS, "--recipe", "both.toml", "--query", "random")
    id = out.split("query ")[1].strip()
    code, _, err = evalkit(*PARTS, "--recipe", "both.toml", "--query", id)
    if code:
        assert "is in several splits: say train:" in err
    code, out, _ = evalkit(*PARTS, "--recipe", "both.toml", "--query", f"test:{id}")
    assert code == 0 and id in out


def test_the_same_seed_asks_the_same(desk: Path, evalkit):
    says = [evalkit(*PARTS, "--recipe", "retrieval.toml", "--seed", seed)[1] for seed in (3, 3, 4, 5)]
    assert says[0] == says[1] and len(set(says)) > 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recipe", "knn.toml"), "is a recipe of the runner knn; galleries are of"),
        (("--recipe", "retrieval.toml", "--query", "nobody"), "there is no query 'nobody' among 18"),
        (("--recipe", "no-such"), "no-such"),
        (("--recipe", "retrieval.toml", "--out", "a.jpg"), "ends in .png"),
        (("--recipe", "retrieval.toml", "--out", "fake.toml/a.png"), "cannot be written"),
    ],
)
def test_wrong_questions_about_parts_have_one_answer(desk: Path, evalkit, words: tuple[str, ...], says: str):
    code, _, err = evalkit(*PARTS, *words)
    assert code == 1
    assert says in err.replace("\n", " ")
    assert not (desk / "a.png").exists()


def test_the_projection_stands_beside_where_there_is_a_head(desk: Path, evalkit):
    sizes = {}
    for words in ((), ("--projected",), ("--encoded",)):
        assert evalkit(*PARTS, "--recipe", "retrieval.toml", "--top", 6, *words)[0] == 0
        sizes[words] = len(pixels(desk / "a.png"))
    assert sizes[()] == sizes[("--projected",)] > sizes[("--encoded",)]
    code, _, err = evalkit("show", "part-retrieval", "pixels", *PARTS[3:], "--recipe", "retrieval.toml", "--projected")
    assert code == 1 and "no pretraining head" in err


def test_too_many_neighbours_are_a_wrong_option(desk: Path, evalkit):
    assert evalkit(*PARTS, "--recipe", "retrieval.toml", "--top", 49)[0] == 2
    assert evalkit(*PARTS, "--recipe", "retrieval.toml", "--top", 0)[0] == 2


SEARCH = ("show", "patch-search", "fake.toml", "photos", "--out", "b.png")


def test_patch_search_writes_a_picture(desk: Path, evalkit):
    code, out, err = evalkit(*SEARCH, "--query", "1.png:2,3", "--top", 4, "--other-images")
    assert code == 0, err
    assert out == "b.png: query 1.png:2,3\n"
    assert len(pixels(desk / "b.png")) > 500 * 250


def test_patches_of_other_images_alone(desk: Path, evalkit, monkeypatch: pytest.MonkeyPatch):
    from evalkit.reporting.figures import gallery

    drawn = []
    real = gallery.gallery
    monkeypatch.setattr(
        gallery, "gallery", lambda query, blocks, **rest: drawn.append(blocks) or real(query, blocks, **rest)
    )
    for words in ((), ("--other-images",)):
        evalkit("show", "patch-search", "pixels", *SEARCH[3:], "--query", "1.png:2,3", "--top", 48, *words)
    everywhere, elsewhere = ({n.name for n in blocks[0].neighbours} for blocks in drawn)
    assert "1" in everywhere and elsewhere <= {"0", "2"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "patch-search", "fake.toml", "nowhere"), "nowhere does not exist"),
        (("show", "patch-search", "fake.toml", "texts"), "holds no image"),
        ((*SEARCH, "--query", "9.png:0,0"), "there is no image '9.png' among 3"),
        ((*SEARCH, "--query", "1.png:0,9"), "7 x 7 patches"),
        ((*SEARCH, "--query", "1.png"), "FILE:ROW,COL"),
        (("show", "patch-search", "pixels", "photos", "--projected"), "no pretraining head"),
        (("show", "patch-search", "fake.toml", "photos", "--out", "b.gif"), "ends in .png"),
    ],
)
def test_wrong_questions_about_patches_have_one_answer(desk: Path, evalkit, words: tuple[str, ...], says: str):
    folder(desk / "texts", {"a.txt": b"a"})
    code, _, err = evalkit(*words)
    assert code == 1
    assert says in err.replace("\n", " ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_before_the_work(desk: Path, evalkit):
    (desk / "locked").mkdir(mode=0o500)
    code, _, err = evalkit(*PARTS[:-1], "locked/a.png", "--recipe", "retrieval.toml")
    assert code == 1 and "cannot be written" in err


def test_object_retrieval_has_galleries_too(desk: Path, evalkit):
    folder(desk / "tree", class_tree(images=3))
    recipe = (
        RECIPE.format(runner="retrieval")
        .replace('"fake"\n', '"image_folder"\n')
        .replace("classes = 3\nper_class = 6\n", "")
    )
    (desk / "objects.toml").write_text(recipe)
    words = (
        "show",
        "part-retrieval",
        "fake.toml",
        "--data",
        "image_folder=tree",
        "--recipe",
        "objects.toml",
        "-o",
        "c.png",
    )
    code, _, err = evalkit(*words)
    assert code == 0, err
    assert (desk / "c.png").exists()
