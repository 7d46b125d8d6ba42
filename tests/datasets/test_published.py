"""A recipe knows what its published numbers were measured on, and `data verify` holds data of that name to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dataset_makers import class_tree, folder

from evalkit import catalog, datasets
from evalkit.cli.main import main
from evalkit.datasets import image_folder, published
from evalkit.reporting import printed
from evalkit.types import DatasetRef, SplitSize


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evalkit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_every_recipe_that_a_difference_may_be_shown_for_knows_its_splits() -> None:
    tables = map(catalog.paper_table, catalog.paper_tables())
    shown = {m.recipe for t in tables for c in t.columns for m in c.measures if not m.differs} & set(catalog.recipes())
    assert len(shown) > 20
    for name in sorted(shown):
        ref = catalog.recipe(name).dataset
        sizes = published.splits(ref)
        assert {ref.train, ref.test} <= set(sizes), name
        assert all(size.photos > 0 for size in sizes.values())


def test_what_travels_with_evalkit_is_not_what_was_published() -> None:
    for name in catalog.recipes():
        ref = catalog.recipe(name).dataset
        if ref.shipped:
            assert published.splits(ref) == {} and not list(printed.links(name))


def record_of(classes: int, images: int, **more: object) -> dict[str, object]:
    return {"classes": [str(c) for c in range(classes)], "images": images, **more}


def test_a_labelled_part_is_of_the_whole_and_photos_count_before_crops() -> None:
    part = catalog.recipe("logreg-imagenet1k-1pct").dataset
    test = record_of(1000, 50_000)
    assert not published.differences(part, {"train": record_of(1000, 12_811, labelled={"of": 1_281_167}), "test": test})
    assert published.differences(part, {"train": record_of(1000, 12_811), "test": test})
    birds = catalog.recipe("part-retrieval-cub-released").dataset
    whole = record_of(4, 9_000, photos=11_788)
    assert not published.differences(birds, {"train": whole, "test": whole})
    assert published.differences(birds, {"train": whole, "test": record_of(4, 11_788, photos=9_000)})
    clips = catalog.recipe("video-davis2017").dataset
    assert published.differences(clips, {"train": record_of(0, 2), "test": record_of(0, 30)}) == [
        "val: 2 clips, published 30"
    ]


def test_any_folder_is_not_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = class_tree(("ant", "bee"), images=3)
    folder(tmp_path / "imagenet", {name.replace("test/", "val/"): data for name, data in files.items()})
    assert run(monkeypatch, "data", "verify", "imagenet", "--data-root", tmp_path) == 1
    said = capsys.readouterr().err
    assert "the split 'train' has 2 classes; 1,000 are published" in said
    assert "the split 'train' has 6 photos; 1,281,167 are published" in said
    assert "the split 'val' has 6 photos; 50,000 are published" in said
    # as what it is, a folder of images, it is complete
    root = tmp_path / "imagenet"
    assert run(monkeypatch, "data", "verify", "image_folder", "--data", root) == 0
    assert "complete as image_folder" in capsys.readouterr().out


def test_what_is_published_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = class_tree(("ant", "bee"), images=3)
    root = folder(tmp_path / "imagenet", {name.replace("test/", "val/"): data for name, data in files.items()})
    small = {"imagenet": {"train": SplitSize(2, 6), "val": SplitSize(2, 6)}}
    monkeypatch.setattr(image_folder, "PUBLISHED", small)
    assert run(monkeypatch, "data", "verify", "imagenet", "--data-root", tmp_path) == 0
    assert "complete" in capsys.readouterr().out
    ref = DatasetRef("image_folder", "imagenet", "train", "val")
    described = {role: datasets.open_dataset(ref, role, root).describe() for role in ("train", "test")}  # type: ignore[arg-type]
    assert not published.differences(ref, described)


def test_describe_says_what_the_numbers_were_measured_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "describe", "knn-imagenet1k")
    said = capsys.readouterr().out
    assert "published on: train, 1,000 classes, 1,281,167 photos; val, 1,000 classes, 50,000 photos" in said
    run(monkeypatch, "describe", "video-davis2017")
    assert "published on: val, 30 clips" in capsys.readouterr().out
