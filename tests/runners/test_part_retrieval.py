"""Part retrieval from files to scores, beside a plain restatement of the released loader and scorer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from evalkit import catalog, datasets
from evalkit.engine.evaluate import Options, Session, evaluate, load
from evalkit.errors import ProtocolError
from evalkit.runners import retrieval
from tests.datasets import part_makers as make

DATA = Path(__file__).resolve().parents[3] / "shared/data"
TINY = DATA / "tiny_coco"
COCO_PARTS = {1: "nose", 11: "right_wrist", 16: "left_ankle"}
CUB_PARTS = {11: "right eye", 12: "right leg", 9: "left wing", 14: "tail"}
tiny = pytest.mark.skipif(not TINY.exists(), reason="the real COCO files are not beside the checkout")


def far(places):
    """Half the distance of each place to the nearest at another place; huge where there is none."""
    found = []
    for one in places:
        others = [np.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True))) for other in places]
        found.append(min([d if d != 0 else 999999 for d in others]) / 2)
    return found


def kept_boxes(image, keypoints):
    """{id: box} of an image's (id, x, y, distance vector), the box as Pillow cuts it."""
    boxes = {}
    for (name, x, y, _), half in zip(keypoints, far([k[3] for k in keypoints]), strict=True):
        if 20 < half < 1000:
            r = round(half / 2)
            boxes[name] = (image, tuple(round(c) for c in (x - r, y - r, x + r, y + r)))
    return boxes


def released_coco(root, split):
    document = json.loads((root / f"annotations/person_keypoints_{split}2017.json").read_text())
    files = {row["id"]: root / f"{split}2017" / row["file_name"] for row in document["images"]}
    pooled = {}
    for row in document["annotations"]:
        triples = [row["keypoints"][3 * n : 3 * n + 3] for n in range(17)]
        seen = [(n + 1, x, y) for n, (x, y, v) in enumerate(triples) if n + 1 in COCO_PARTS and v == 2]
        if len(seen) > 1:
            image, person = row["image_id"], row["id"]
            pooled.setdefault(image, []).extend(
                (f"{image}/{person}/{COCO_PARTS[n]}", x, y, (x, y, person)) for n, x, y in seen
            )
    return {name: at for image, points in pooled.items() for name, at in kept_boxes(files[image], points).items()}


def released_cub(root, training=None):
    files = dict(line.split() for line in (root / "images.txt").read_text().splitlines())
    trains = dict(line.split() for line in (root / "train_test_split.txt").read_text().splitlines())
    pooled = {}
    for line in (root / "parts/part_locs.txt").read_text().splitlines():
        image, part, x, y, visible = line.split()
        if visible == "1" and int(part) in CUB_PARTS and (training is None or (trains[image] == "1") == training):
            place = (float(x), float(y))
            pooled.setdefault(image, []).append((f"{image}/{CUB_PARTS[int(part)]}", *place, place))
    return {
        name: at
        for image, points in pooled.items()
        for name, at in kept_boxes(root / "images" / files[image], points).items()
    }


def released_scores(features, names):
    """AP per query, counting the query itself, from cosines of one query with all."""
    parts = np.array([name.split("/")[-1] for name in names])
    precision = []
    for query in range(len(names)):
        similarity = F.cosine_similarity(features[query : query + 1], features, dim=1)
        precision.append(average_precision_score((parts == parts[query]).astype(int), similarity.numpy()))
    precision = np.array(precision)
    return precision, precision.mean(), np.mean([precision[parts == part].mean() for part in sorted(set(parts))])


def opened(recipe, role, root):
    return datasets.open_dataset(catalog.recipe(recipe).dataset, role, root)


def whole(box):
    return tuple(round(c) for c in box)


def birds(root):
    """A CUB tree whose birds have parts near, far, at one place, alone, over the border and hidden."""
    rng = np.random.default_rng(3)
    places = {}
    for image in range(1, 25):
        places[image] = {part: tuple(np.round(rng.uniform(0, 300, 2), 1)) for part in (*CUB_PARTS, 1, 7)}
    places[2][12] = places[2][11]
    places[3] = {part: (40.0, 50.0) for part in CUB_PARTS}
    places[4] = {11: (40.0, 50.0)}
    places[5][14] = (-20.5, 10.0)
    places[6] = {11: (0.0, 0.0), 12: (40.0, 0.0), 9: (0.0, 2500.0), 14: (300.0, 0.5)}
    places[7][9] = (*places[7][9], 0)
    root = make.cub(root, places)
    pixels = rng.integers(0, 256, (24, 20, 30, 3), dtype=np.uint8)
    for image, noise in zip(places, pixels, strict=True):
        file = root / f"images/{image:03d}.Bird/Bird_{image:04d}.jpg"
        Image.fromarray(noise).resize((make.WIDTH, make.HEIGHT)).save(file)
    return root


@pytest.mark.parametrize(("split", "training"), [("all", None), ("train", True), ("test", False)])
def test_birds_are_cut_as_released(tmp_path, split, training):
    root = birds(tmp_path)
    recipe = "part-retrieval-cub-released" if split == "all" else "part-linear-cub-released"
    mine = {s.id: whole(s.box) for s in opened(recipe, "train" if split == "train" else "test", root)}
    theirs = released_cub(root, training)
    assert mine == {name: box for name, (_, box) in theirs.items()}
    assert split != "all" or len(mine) > 40


@tiny
@pytest.mark.parametrize(("split", "role", "count"), [("train", "train", 57), ("val", "test", 32)])
def test_people_are_cut_as_released(split, role, count):
    mine = {s.id: whole(s.box) for s in opened("part-retrieval-coco-released", role, TINY)}
    assert mine == {name: box for name, (_, box) in released_coco(TINY, split).items()}
    assert len(mine) == count


def encoded(crops, encoder):
    """(N, D) class tokens of the released crops: cut, short side to the encoder's size, normalised."""
    feeding = encoder.spec.preprocessing
    size = min(feeding.size, 224) // encoder.spec.patch * encoder.spec.patch
    rows = []
    for file, box in crops:
        with Image.open(file) as opened_file:
            crop = opened_file.convert("RGB").crop(box)
        pixels = transforms.resize(crop, size, transforms.InterpolationMode.BICUBIC, antialias=True)
        image = transforms.normalize(transforms.to_tensor(pixels), feeding.mean, feeding.std)
        rows.append(encoder.encode(image[None])[0].cls)
    return torch.cat(rows).float()


def compared(recipe, theirs, root, tmp_path):
    wanted = catalog.recipe(recipe)
    record = evaluate("pixels", recipe, data={wanted.dataset.folder: root}, cache=tmp_path / "cache")
    scores = {score["name"]: score for score in record.scores}
    precision, over_queries, over_parts = released_scores(encoded(theirs.values(), load("pixels")), list(theirs))
    assert scores["AP"]["n"] == scores["mAP"]["n"] == len(theirs)
    assert scores["AP"]["value"] == scores["AP@cls"]["value"] == pytest.approx(over_queries, abs=1e-6)
    assert scores["mAP"]["value"] == scores["mAP@cls"]["value"] == pytest.approx(over_parts, abs=1e-6)
    assert record.recipe["headline"] == "AP"
    return precision, scores


@tiny
def test_people_are_scored_as_released(tmp_path):
    theirs = released_coco(TINY, "train")
    precision, scores = compared("part-retrieval-coco-released", theirs, TINY, tmp_path)
    noses = [value for value, name in zip(precision, theirs, strict=True) if name.endswith("/nose")]
    assert scores["AP@cls/nose"]["n"] == len(noses)
    assert scores["AP@cls/nose"]["value"] == pytest.approx(np.mean(noses), abs=1e-6)


def test_birds_are_scored_as_released(tmp_path):
    root = birds(tmp_path / "data")
    compared("part-retrieval-cub-released", released_cub(root), root, tmp_path)


def test_the_papers_rule_leaves_the_query_out_and_resamples_images(tmp_path):
    root = birds(tmp_path / "data")
    session = Session(Options(data={"CUB_200_2011": root}, out=None, cache=tmp_path / "cache"))
    encoder, recipe = load("pixels"), catalog.recipe("part-retrieval-cub")
    given = session.job(encoder, recipe)
    features = given.features("test", parts=("cls",))
    cosine = F.normalize(features.get("cls")) @ F.normalize(features.get("cls")).T
    labels, expected = features.labels.numpy(), []
    for query in range(len(labels)):
        relevant = np.delete(labels == labels[query], query)
        expected.append(average_precision_score(relevant, np.delete(cosine[query].numpy(), query)))
    scores = {score.name: score for score in retrieval.run(given)}
    assert scores["AP"].outcomes == pytest.approx(np.array(expected), abs=1e-5)
    assert scores["AP"].groups is not None
    assert len(set(scores["AP"].groups.tolist())) == len({s.group for s in given.dataset("test")})
    names = ("AP", "mAP", "AP@cls", "mAP@cls", *(f"AP@cls/{part}" for part in CUB_PARTS.values()))
    assert tuple(scores)[:8] == names
    assert scores["AP@encoded"].note == scores["mAP@encoded"].note == "best-on-test"
    per_part = [scores[name].value for name in names[4:]]
    assert scores["mAP"].value == pytest.approx(np.mean(per_part))
    assert scores["mAP"].low < scores["mAP"].value < scores["mAP"].high
    assert given.facts["absent"].keys() == {"AP@projected", "AP@bottleneck"}


def test_crops_of_a_single_part_are_no_question(tmp_path):
    """Two parts are asked for, but the legs are so close to the border that none is left."""
    root = make.cub(tmp_path / "data", {n: {11: (100.0, 100.0), 12: (180.0, 30.0)} for n in range(1, 5)})
    recipe = catalog.recipe("part-retrieval-cub")
    config = {"parts": ["right eye", "right leg"], "border": "drop"}
    narrow = replace(recipe, dataset=replace(recipe.dataset, config=config))
    with pytest.raises(ProtocolError, match="same class"):
        evaluate("pixels", narrow, data={"CUB_200_2011": root}, cache=tmp_path / "cache")
