"""Labels go by the names of classes, whatever order or numbers a split has."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from evalkit.datasets.agreement import Renumbered, agreed, notes
from evalkit.datasets.listing import Listing
from evalkit.errors import DatasetError
from evalkit.types import Outlined, Sample


class Nothing:
    root = "/x"

    def image(self, group: str) -> Image.Image:
        raise NotImplementedError

    def digest(self, groups: object) -> tuple[str, str]:
        return "0", "nothing"


class Odd(Listing):
    def pixels(self, index: int) -> np.ndarray:
        return np.array([[-1, 0], [1, 1]], np.int32)

    def objects(self, index: int) -> tuple[Outlined, ...]:
        return (Outlined("a", 1, np.ones((1, 1), bool)),)


def split(name: str, *classes: str) -> Odd:
    samples = tuple(Sample(f"{label}", f"{label}", label) for label in (*range(len(classes)), -1))
    return Odd("odd", name, classes, samples, Nothing())


def test_splits_that_agree_stay_as_they_are() -> None:
    for classes in (("red", "green"), ()):
        test = split("val", *classes)
        assert agreed(split("train", *classes), test) is test


@pytest.mark.parametrize("own", [("red", "green"), ("blue", "red", "green")])
def test_labels_masks_and_objects_are_renumbered_by_name(own: tuple[str, ...]) -> None:
    test = split("val", "green", "red")
    found = agreed(split("train", *own), test)
    assert isinstance(found, Renumbered) and found.classes == own
    assert [s.label for s in map(found.__getitem__, range(3))] == [own.index("green"), own.index("red"), -1]
    np.testing.assert_array_equal(found.pixels(0), [[-1, own.index("green")], [own.index("red")] * 2])
    assert found.objects(0)[0].label == own.index("red")
    assert found.digest != test.digest
    assert found.describe()["classes"] == list(own)
    assert found.describe().get("classes_without_samples") == [name for name in own if name == "blue"]
    assert any("labels go by the names" in note for note in notes(found.describe()))


def test_classes_that_only_the_test_split_has_are_named_and_refused() -> None:
    with pytest.raises(DatasetError, match="the split 'val' has 2 classes that 'train' lacks: cyan, pink;"):
        agreed(split("train", "red", "green"), split("val", "red", "cyan", "pink"))


def test_two_classes_of_one_name_cannot_go_by_name() -> None:
    with pytest.raises(DatasetError, match="'train' has two classes of the name 'red'"):
        agreed(split("train", "red", "red"), split("val", "red"))


def test_what_is_odd_is_told_in_a_sentence_each() -> None:
    facts = {"dataset": "d", "split": "val", "classes_without_samples": ["a\nb"], "files_passed_over": {".txt": 2}}
    assert notes(facts) == [r"d (val): no sample carries a\nb", "d (val): passed over beside the images: 2 .txt"]
    assert notes({"dataset": "d", "split": "val", "classes_without_samples": []}) == []
