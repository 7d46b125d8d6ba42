"""COCO files measured: annotations that cannot be are an error or, with --skip-broken, left out; labels go by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit import catalog
from evalkit.engine.evaluate import Options, Session, load
from evalkit.errors import BrokenImage
from tests.datasets.dataset_makers import coco
from tests.datasets.dense_makers import coco_outlines

OUT = {"segmentation": [[1, 2, 3, 4, 1000, 6]]}
"""A polygon that leaves the photo."""

LIES = {"segmentation": {"size": [80, 100], "counts": [7999]}}
"""A run-length code that counts another number of pixels."""

WIDE = {"bbox": [70, 10, 400, 20]}

OBJECTS = {"min_train": 1, "min_test": 1, "min_side": 10}
TINY = {
    "steps": 2,
    "warmup": 1,
    "batch": 2,
    "crop": 64,
    "train_scale": [128, 64],
    "test_scale": [128, 64],
    "stride": 32,
}
CASES = {
    "outside": ("mini-prompt-coco", "val", OUT, {}, {}),
    "code": ("mini-similarity-coco", "val", LIES, {}, {}),
    "per pixel": ("seg-linear-coco-mmc", "train", OUT, {}, TINY),
    "box": ("mini-knn-coco-objects", "train", WIDE, OBJECTS, {"ks": [5]}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_annotation_that_cannot_be_is_named_counted_and_may_be_skipped(tmp_path: Path, case: str) -> None:
    name, split, changes, config, options = CASES[case]
    documents: dict[str, Any] = {"train": coco_outlines(3), "val": coco_outlines(3, first=7)}
    bad = documents[split]["annotations"][0]
    bad |= changes
    coco(tmp_path / "coco", documents["train"], documents["val"])
    recipe = catalog.recipe(name)
    recipe = replace(
        recipe,
        dataset=replace(recipe.dataset, folder="coco", shipped=False, config={**recipe.dataset.config, **config}),
        config={**recipe.config, **options},
    )
    asked = Options(data_root=tmp_path, out=tmp_path / "runs", cache=tmp_path / "cache")
    (failed,) = Session(asked).run(load("pixels"), [recipe], {})
    assert isinstance(failed.error, BrokenImage), failed.error
    assert f"annotation {bad['id']}: " in str(failed.error) and "--skip-broken" in str(failed.error)
    assert "\n" not in str(failed.error)
    (made,) = Session(replace(asked, skip_broken=True)).run(load("pixels"), [recipe], {})
    assert made.record is not None, made.error
    facts = made.record.data["train" if split == "train" else "test"]
    lost = [f"{bad['image_id']:012d}.jpg"] if case != "box" else [str(bad["id"] + n) for n in range(3)]
    assert facts["skipped"] == lost
    assert [ids for ids in facts["annotations_left_out"].values()] == [[bad["id"]]]


@pytest.mark.parametrize(
    ("ids", "order"), [({7: 3, 3: 7}, (0, 1, 2)), ({}, (1, 0, 2))], ids=["other ids", "other order"]
)
def test_a_split_that_numbers_the_categories_otherwise_gives_the_same_score(
    tmp_path: Path, ids: dict[int, int], order: tuple[int, ...]
) -> None:
    recipe = catalog.recipe("seg-linear-coco-mmc")
    recipe = replace(recipe, config={**recipe.config, **TINY, "rate": 0.1, "steps": 12})
    scores = []
    for name, numbers, places in (("same", {}, (0, 1, 2)), ("other", ids, order)):
        val = coco_outlines(3, first=7)
        for row in val["annotations"]:
            row["category_id"] = numbers.get(row["category_id"], row["category_id"])
        for row in val["categories"]:
            row["id"] = numbers.get(row["id"], row["id"])
        val["categories"] = [val["categories"][place] for place in places]
        coco(tmp_path / name / "coco", coco_outlines(3), val)
        asked = Options(data_root=tmp_path / name, out=tmp_path / name, cache=tmp_path / name / "cache")
        (made,) = Session(asked).run(load("pixels"), [recipe], {})
        assert made.record is not None, made.error
        scores.append([(score["name"], score["value"], score["n"]) for score in made.record.scores])
    assert scores[0] == scores[1]
