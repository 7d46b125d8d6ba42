"""A folder and a zip of the same files look alike; what is unsafe or damaged is refused."""

from __future__ import annotations

import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dataset_makers import folder, zipped

from evalkit.datasets import files as module
from evalkit.datasets.files import Tree, missing
from evalkit.errors import DatasetError, MissingFiles

FILES = {
    "a/one.JPG": b"1" * 1000,
    "a/b/two.png": b"22",
    "c.txt": b"333",
    "a/.hidden.jpg": b"x",
    "__MACOSX/a/._one.jpg": b"x",
    ".git/x.jpg": b"x",
}


@pytest.fixture(params=["folder", "zip"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    if request.param == "zip":
        return Tree.open(zipped(tmp_path / "x.zip", FILES, folders=["empty"]))
    folder(tmp_path / "x", FILES)
    (tmp_path / "x" / "empty").mkdir()
    return Tree.open(tmp_path / "x")


def test_names_are_sorted_and_filtered(tree: Tree) -> None:
    assert tree.names() == ["a/b/two.png", "a/one.JPG", "c.txt"]
    assert tree.names((".jpg",)) == ["a/one.JPG"]
    assert tree.names(under="a/b") == ["a/b/two.png"]
    assert tree.names(under="nowhere") == []


def test_folders_include_empty_ones(tree: Tree) -> None:
    assert tree.folders() == ["a", "empty"]
    assert tree.folders("a") == ["b"]
    assert tree.folders("nowhere") == []


def test_exists(tree: Tree) -> None:
    assert [tree.exists(name) for name in ("a", "a/b", "c.txt", "empty", "a/o", "x")] == [True] * 4 + [False] * 2


def test_read_and_sizes(tree: Tree) -> None:
    assert tree.read("a/one.JPG") == b"1" * 1000
    assert tree.sizes(["c.txt", "a/b/two.png"]) == [3, 2]
    with pytest.raises(MissingFiles, match="gone"):
        tree.read("gone")
    with pytest.raises(MissingFiles, match="gone"):
        tree.sizes(["gone"])


def test_within_looks_further_down(tree: Tree) -> None:
    inner = tree.within("a").within("b")
    assert inner.names() == ["two.png"]
    assert inner.read("two.png") == b"22"


def test_a_copy_in_another_process_reads_the_same(tree: Tree) -> None:
    copy = pickle.loads(pickle.dumps(tree))
    assert [copy.read(name) for name in copy.names()] == [tree.read(name) for name in tree.names()]


def test_threads_do_not_disturb_each_other(tree: Tree) -> None:
    names = ["a/one.JPG", "a/b/two.png", "c.txt"] * 50
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tree.read, names)) == [FILES[name] for name in names]


def test_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    for make, kind in ((folder, ""), (zipped, ".zip")):
        same = [Tree.open(make(tmp_path / f"{n}{kind}", {"a": b"xy", "b": b"z"})) for n in "12"]
        other = Tree.open(make(tmp_path / f"3{kind}", {"a": b"xY", "b": b"z"}))
        assert same[0].digest(["a", "b"]) == same[1].digest(["b", "a"])
        assert other.digest(["a", "b"]) != same[0].digest(["a", "b"])
        assert other.digest(["b"]) == same[0].digest(["b"])


def test_a_large_folder_is_digested_by_names_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree.open(folder(tmp_path / "x", {"a": b"xy", "b": b"z"}))
    assert tree.digest(["a", "b"])[1] == "sha256 of each file"
    monkeypatch.setattr(module, "HASHED", 2)
    before = tree.digest(["a", "b"])
    assert before[1] == "name and size of each file"
    (tmp_path / "x" / "a").write_bytes(b"longer")
    assert tree.digest(["a", "b"]) != before


def test_rooted_finds_the_single_top_folder(tmp_path: Path) -> None:
    tree = Tree.open(zipped(tmp_path / "x.zip", {"top/train/a.jpg": b"1"}))
    assert tree.rooted(["train"]).names() == ["train/a.jpg"]
    assert tree.rooted(["top"]).names() == ["top/train/a.jpg"]
    assert tree.rooted(["nowhere"]).names() == ["top/train/a.jpg"]


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {"a/one.jpg": b"1"})
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    assert Tree.open(root).names() == ["a/one.jpg"]


@pytest.mark.parametrize("name", ["../out.jpg", "a/../../out.jpg", "/etc/out.jpg", "a\\..\\..\\out.jpg", "C:/out.jpg"])
def test_names_that_climb_out_of_a_zip_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="out"):
        Tree.open(zipped(tmp_path / "x.zip", {name: b"1"}))


def test_names_that_climb_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, {"secret": b"1", "x/a": b"1"})
    with pytest.raises(DatasetError, match="leads out"):
        Tree.open(tmp_path / "x").read("../secret")


def test_a_password_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.jpg": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the general purpose flag of the central directory
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="password"):
        Tree.open(path)


def test_other_packing_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"1")
    with pytest.raises(DatasetError, match="stored and deflated"):
        Tree.open(tmp_path / "x.zip")


def test_a_doubled_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", b"2")
    with pytest.raises(DatasetError, match="twice"):
        Tree.open(tmp_path / "x.zip")


def test_a_broken_zip_and_no_zip_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.jpg": b"1" * 100})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"x\.zip"):
        Tree.open(path)
    with pytest.raises(DatasetError, match=r"tar xf y\.tar\.gz"):
        Tree.open(folder(tmp_path, {"y.tar.gz": b"1"}) / "y.tar.gz")
    with pytest.raises(MissingFiles, match="does not exist"):
        Tree.open(tmp_path / "nowhere")


def test_an_entry_that_claims_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 10)
    with pytest.raises(DatasetError, match="claims 11 bytes"):
        Tree.open(zipped(tmp_path / "x.zip", {"a": b"1" * 11}))


@pytest.mark.parametrize("where", ["content", "header"])
def test_a_damaged_entry_is_found(tmp_path: Path, where: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"content" * 9)
    data = bytearray(path.read_bytes())
    data[data.index(b"content") if where == "content" else 0] ^= 1
    tree = Tree.open(path)
    path.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match=r"a\.jpg is damaged"):
        tree.read("a.jpg")


def test_an_entry_larger_than_it_says_is_found(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a": b"1" * 5000})
    tree = Tree.open(path)
    assert tree.entries is not None
    lying = Tree(path, "", {"a": tree.entries["a"]._replace(size=10)})
    with pytest.raises(DatasetError, match="damaged"):
        lying.read("a")


def test_missing_lists_all_up_to_two_hundred() -> None:
    assert all(f"n{row}" in str(missing("x", [f"n{row}" for row in range(200)], "layout")) for row in range(200))
    assert "and 50 more" in str(missing("x", [f"n{row}" for row in range(250)], "layout"))
