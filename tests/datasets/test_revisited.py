"""Revisited Oxford and Paris: whatever numpy types the .pkl holds, and everything that it may get wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.datasets import pickles, revisited
from evalkit.datasets.revisited import Config
from evalkit.datasets.subset import Subset
from evalkit.errors import DatasetError, MissingFiles
from evalkit.types import Judgement
from tests.datasets import dataset_makers as make

GND = make.revisited_truth()["gnd"]


def content(gnd: Any = GND, **changes: Any) -> dict[str, Any]:
    return make.revisited_truth(gnd=gnd, **changes)


def test_the_gallery_and_the_queries(tmp_path: Path) -> None:
    root = make.revisited(tmp_path)
    gallery, queries = (revisited.open(root, split, Config()) for split in ("gallery", "query"))
    assert [s.id for s in gallery] == ["a", "b", "c", "d"]  # type: ignore[attr-defined]
    assert [gallery[i].box for i in range(4)] == [None] * 4
    assert [queries[i].id for i in range(2)] == ["q", "r"]
    assert queries[0].box == (1.0, 1.0, 5.0, 4.0)
    assert queries.judgements == {  # type: ignore[attr-defined]
        "q": Judgement(("a",), ("c",), ("d",)),
        "r": Judgement((), ("b",), ()),
    }
    assert gallery.image("a").size == (8, 6)
    assert revisited.verify(root) == []


def test_whole_photos_as_queries(tmp_path: Path) -> None:
    root = make.revisited(tmp_path)
    cropped, whole = (revisited.open(root, "query", Config(crop_queries=crop)) for crop in (True, False))
    assert whole[0].box is None
    assert whole.digest != cropped.digest


def test_a_limit_keeps_the_judgements(tmp_path: Path) -> None:
    queries = revisited.open(make.revisited(tmp_path), "query", Config())
    assert Subset(queries, 1).judgements == queries.judgements  # type: ignore[attr-defined]


def test_a_changed_judgement_is_another_digest(tmp_path: Path) -> None:
    before = revisited.open(make.revisited(tmp_path / "x"), "query", Config()).digest
    other = [{**GND[0], "junk": []}, GND[1]]
    assert revisited.open(make.revisited(tmp_path / "y", content(other)), "query", Config()).digest != before


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, "<i4", ">i8"])
def test_arrays_of_any_number_type_in_every_protocol(tmp_path: Path, protocol: int, kind: Any) -> None:
    arrays = [{k: np.array(v, dtype=np.float64 if k == "bbx" else kind) for k, v in row.items()} for row in GND]
    scalars = [{**row, "bbx": tuple(np.float32(v) for v in row["bbx"])} for row in arrays]
    expected = revisited.open(make.revisited(tmp_path / "plain"), "query", Config())
    for name, gnd in (("arrays", arrays), ("scalars", scalars)):
        found = revisited.open(make.revisited(tmp_path / name, content(gnd), protocol), "query", Config())
        assert found.judgements == expected.judgements  # type: ignore[attr-defined]
        assert [found[i] for i in range(2)] == [expected[i] for i in range(2)]


def test_text_of_python_2(tmp_path: Path) -> None:
    old = {k.encode(): v for k, v in content([{k.encode(): v for k, v in row.items()} for row in GND]).items()}
    old[b"imlist"], old[b"qimlist"] = [b"a", b"b", b"c", b"d"], [b"q", b"r"]
    assert revisited.open(make.revisited(tmp_path, old), "query", Config())[1].id == "r"


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        content(imlist=["a", "a", "c", "d"]),
        content(imlist=[]),
        content(qimlist=["q"]),
        content(imlist=[1, 2, 3, 4]),
        content([{**GND[0], "easy": [4]}, GND[1]]),
        content([{**GND[0], "easy": [-1]}, GND[1]]),
        content([{**GND[0], "easy": [0.5]}, GND[1]]),
        content([{**GND[0], "easy": [2]}, GND[1]]),
        content([{**GND[0], "easy": ["a"]}, GND[1]]),
        content([{**GND[0], "bbx": [1, 1, 1, 4]}, GND[1]]),
        content([{**GND[0], "bbx": [1, 1, 4]}, GND[1]]),
        content([{"bbx": [1, 1, 5, 4]}, GND[1]]),
    ],
)
def test_what_is_no_ground_truth_is_refused(tmp_path: Path, data: Any) -> None:
    root = make.revisited(tmp_path, data)
    with pytest.raises(DatasetError, match="gnd_roxford5k"):
        revisited.open(root, "query", Config())
    assert len(revisited.verify(root)) == 1


def test_absent_files_are_all_named(tmp_path: Path) -> None:
    root = make.revisited(tmp_path)
    for name in ("b", "r"):
        (root / f"jpg/{name}.jpg").unlink()
    with pytest.raises(MissingFiles, match=r"jpg/b\.jpg, jpg/r\.jpg"):
        revisited.open(root, "gallery", Config())
    with pytest.raises(MissingFiles, match="gnd_rparis6k"):
        revisited.open(root, "gallery", Config(variant="rparis6k"))
    with pytest.raises(DatasetError, match="gallery, query"):
        revisited.open(root, "train", Config())


def test_a_type_that_claims_to_hold_objects_is_read_as_numbers() -> None:
    """numpy's own type would take such flags over, and numbers would be followed as pointers."""

    class Hostile:
        def __reduce__(self) -> Any:
            return np.dtype, ("i8", False, True), (3, "<", None, None, None, 8, 8, 63)

    class Array:
        def __reduce__(self) -> Any:
            rebuild, arguments, _ = np.zeros(2, np.int64).__reduce__()  # type: ignore[misc]
            return rebuild, arguments, (1, (2,), Hostile(), False, b"\1" + bytes(15))

    found = pickles.loads(pickle.dumps(Array(), 4), "x", pickles.NUMBERS)
    assert found.tolist() == [1, 0]
    assert not found.dtype.hasobject


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), np.zeros(2, np.complex64), np.zeros(2, "M8[s]")])
def test_arrays_of_other_things_are_refused(value: Any) -> None:
    with pytest.raises(DatasetError, match="refused"):
        pickles.loads(pickle.dumps(value, 4), "x", pickles.NUMBERS)
