"""Which training samples have labels: stored lists as their authors published them, and seeded shares of every class."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from evalkit import datasets
from evalkit.datasets import labelled
from evalkit.errors import DatasetError
from evalkit.types import DatasetRef, LabelledRef
from tests.datasets import dataset_makers as make


def fake(role="train", **ref):
    given = DatasetRef("fake", "fake", config={"classes": 3, "per_class": 40}, labelled=LabelledRef(**ref))
    return datasets.open_dataset(given, role, Path("."))


@pytest.mark.parametrize(
    ("which", "images", "per_class"),
    [("imagenet-1pct", 12_811, {12: 189, 13: 811}), ("imagenet-10pct", 128_116, {128: 884, 129: 116})],
)
def test_stored_lists_are_those_of_simclr(which, images, per_class):
    names = labelled.names(which)
    assert len(set(names)) == len(names) == images
    assert hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest() == labelled.LISTS[which]
    assert Counter(Counter(name.split("_")[0] for name in names).values()) == per_class
    assert all(name.endswith(".JPEG") for name in names)


def test_a_damaged_or_unknown_list_is_refused(monkeypatch):
    with pytest.raises(DatasetError, match="there are imagenet-1pct, imagenet-10pct"):
        labelled.names("imagenet-2pct")
    monkeypatch.setitem(labelled.LISTS, "imagenet-1pct", "0" * 64)
    with pytest.raises(DatasetError, match="has sha256 71e82a48"):
        labelled.names("imagenet-1pct")


def test_a_list_takes_its_images_in_the_order_of_the_data(tmp_path, monkeypatch):
    images = {f"train/{name[0]}/{name}.png": make.encoded(make.plain()) for name in ("a1", "a2", "b1", "b2")}
    root = make.folder(tmp_path / "tree", images | {"train/b/again/a1.png": make.encoded(make.plain())})

    def ids(*listed):
        monkeypatch.setattr(labelled, "names", lambda which: listed)
        ref = DatasetRef("image_folder", "tree", labelled=LabelledRef(list="mine"))
        found = datasets.open_dataset(ref, "train", root)
        return [found[i].id for i in range(len(found))]

    assert ids("b2.png", "a2.png") == ["a/a2.png", "b/b2.png"]
    with pytest.raises(DatasetError, match=r"1 of the 2 images of the list 'mine' are not there, the first is b3\.png"):
        ids("b1.png", "b3.png")
    with pytest.raises(DatasetError, match=r"there more than once, the first is a1\.png"):
        ids("a1.png")


def test_a_share_takes_so_many_of_every_class_whatever_their_order():
    whole, part, more = fake(), fake(share=0.1), fake(share=0.31)
    assert Counter(part[i].label for i in range(len(part))) == {0: 4, 1: 4, 2: 4}
    assert Counter(more[i].label for i in range(len(more))) == {0: 13, 1: 13, 2: 13}
    ids = lambda of: {of[i].id for i in range(len(of))}
    assert ids(part) < ids(more) < ids(whole)
    assert ids(fake(share=0.1, seed=1)) != ids(part)
    backwards = labelled._share([whole[i] for i in range(120)][::-1], LabelledRef(share=0.1))
    assert {whole[119 - i].id for i in backwards} == ids(part)
    assert list(part.indices) == sorted(part.indices)


def test_a_share_is_of_the_training_split_and_says_so():
    assert len(fake("test", share=0.1)) == 120
    part = fake(share=0.1)
    facts = part.describe()
    assert (facts["samples"], facts["labelled"]["of"], facts["labelled"]["share"]) == (12, 120, 0.1)
    assert len({part.digest, fake(share=0.1, seed=1).digest, fake().digest, part.whole.digest}) == 4
    assert facts["digest"] == part.digest
    assert part.image(part[0].group).mode == "RGB"
    assert (part.name, part.split, part.classes) == ("fake", "train", part.whole.classes)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(DatasetError, match="labelled share"):
        len(fake(share=share))
