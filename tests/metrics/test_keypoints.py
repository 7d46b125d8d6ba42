"""AP and AR of poses equal what pycocotools says of the same JSON files, resamples included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evalkit.datasets.coco_pose import SIGMAS
from evalkit.errors import ProtocolError
from evalkit.metrics import intervals, keypoints
from evalkit.metrics.keypoints import Pose, Truth


def crowd_of(seed: int = 0, photos: int = 12) -> tuple[list[Truth], list[Pose]]:
    rng = np.random.default_rng(seed)
    people, poses = [], []
    for photo in range(3, 3 + photos):
        for _ in range(int(rng.integers(1, 5))):
            points = np.column_stack([rng.uniform(0, 200, (17, 2)), rng.integers(0, 3, 17)]).astype(float)
            area = float(rng.choice([600, 3000, 30000]))
            people.append(Truth(photo, points, area, (10.0, 10.0, 150.0, 180.0), counts=bool(rng.random() < 0.8)))
            if rng.random() < 0.9:
                found = points[:, :2] + rng.normal(0, rng.choice([0.5, 5, 15]), (17, 2))
                poses.append(Pose(photo, found, float(rng.integers(0, 8)) / 8))  # ties among scores
    people.append(Truth(3, np.zeros((17, 3)), 20000.0, (0.0, 0.0, 200.0, 200.0), counts=False, crowd=True))
    return people, poses


def official(people: list[Truth], poses: list[Pose], folder: Path) -> dict[str, float]:
    """Through files and the plain calls, as every pose repository does it."""
    annotations = [
        {
            "id": number,
            "image_id": p.image,
            "category_id": 1,
            "iscrowd": int(p.crowd),
            "area": p.area,
            "bbox": [p.box[0], p.box[1], p.box[2] - p.box[0], p.box[3] - p.box[1]],
            "keypoints": p.keypoints.ravel().tolist(),
            "num_keypoints": int((p.keypoints[:, 2] > 0).sum()) * p.counts,
        }
        for number, p in enumerate(people, start=1)
    ]
    truth = {"images": [{"id": i} for i in {p.image for p in people}], "categories": [{"id": 1, "name": "person"}]}
    (folder / "truth.json").write_text(json.dumps({**truth, "annotations": annotations}))
    rows = [
        {
            "image_id": p.image,
            "category_id": 1,
            "score": p.score,
            "keypoints": np.column_stack([p.keypoints, np.ones(17)]).ravel().tolist(),
        }
        for p in poses
    ]
    (folder / "poses.json").write_text(json.dumps(rows))
    coco = COCO(str(folder / "truth.json"))
    judge = COCOeval(coco, coco.loadRes(str(folder / "poses.json")), "keypoints")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    names = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
    return dict(zip(names, judge.stats.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_pycocotools(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]):
    people, poses = crowd_of(seed)
    found = keypoints.evaluate(people, poses, SIGMAS)
    assert capsys.readouterr().out == ""
    assert found.values == official(people, poses, tmp_path)
    assert 0.05 < found.values["AP"] < 0.9  # neither trivially


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_worth_what_evaluating_it_anew_gives(tmp_path: Path, seed: int):
    people, poses = crowd_of(seed)
    found = keypoints.evaluate(people, poses, SIGMAS)
    weights = np.random.default_rng(seed).multinomial(found.photos, np.full(found.photos, 1 / found.photos))
    several, several_poses, number = [], [], 100
    for photo, times in zip(range(3, 3 + found.photos), weights.tolist(), strict=True):
        for _ in range(times):
            several += [
                Truth(number, p.keypoints, p.area, p.box, p.counts, p.crowd) for p in people if p.image == photo
            ]
            several_poses += [Pose(number, p.keypoints, p.score) for p in poses if p.image == photo]
            number += 1
    # copies of a photo enter together where scores tie; apart, they come in turn: break ties by photo in both
    spread = {id(p): p.score + 1e-6 * i for i, p in enumerate(poses)}
    apart = [Pose(p.image, p.keypoints, spread[id(p)]) for p in poses]
    by_place = {p.keypoints.tobytes(): spread[id(p)] for p in poses}
    several_poses = [Pose(p.image, p.keypoints, by_place[p.keypoints.tobytes()]) for p in several_poses]
    mine = keypoints.evaluate(people, apart, SIGMAS).resampled(weights.astype(float))
    assert mine == pytest.approx(official(several, several_poses, tmp_path), abs=1e-12)


def test_weights_of_one_give_the_value():
    found = keypoints.evaluate(*crowd_of(5), SIGMAS)
    assert found.resampled(np.ones(found.photos)) == pytest.approx(dict(found.values), abs=1e-12)


def test_intervals_hold_the_value_and_are_the_same_again():
    found = keypoints.evaluate(*crowd_of(2, photos=40), SIGMAS)
    drawn = keypoints.resample(found, resamples=200, seed=1)
    bounds = intervals.of_resamples(drawn["AP"], found.photos)
    assert bounds.low < found.values["AP"] < bounds.high
    assert (drawn["AP"] == keypoints.resample(found, resamples=200, seed=1)["AP"]).all()


def test_perfect_poses_score_one_and_no_pose_zero():
    people, _ = crowd_of(1)
    exact = [Pose(p.image, p.keypoints[:, :2], 1.0) for p in people if p.counts]
    found = keypoints.evaluate(people, exact, SIGMAS).values
    assert {round(v, 9) for v in found.values() if v == v} == {1.0}
    assert keypoints.evaluate(people, [], SIGMAS).values["AP"] == 0
    assert keypoints.evaluate(people, [], SIGMAS).values["AR"] == 0


def test_sizes_without_people_are_nan_and_one_photo_has_no_interval():
    points = np.column_stack([np.arange(34.0).reshape(17, 2), np.full(17, 2.0)])
    found = keypoints.evaluate(
        [Truth(1, points, 2000.0, (0.0, 0.0, 40.0, 40.0))], [Pose(1, points[:, :2], 1.0)], SIGMAS
    )
    assert found.values["APM"] == pytest.approx(1)
    assert np.isnan(found.values["APL"])
    assert not keypoints.resample(found)["AP"].size
    nine, ten = (keypoints.evaluate(*crowd_of(2, photos=photos), SIGMAS) for photos in (9, 10))
    assert [keypoints.resample(few, resamples=5)["AP"].size for few in (nine, ten)] == [0, 5]


def test_what_is_refused():
    people, poses = crowd_of()
    with pytest.raises(ProtocolError, match="nobody"):
        keypoints.evaluate([people[-1]], poses, SIGMAS)
    with pytest.raises(ProtocolError, match="number 99"):
        keypoints.evaluate(people, [Pose(99, np.zeros((17, 2)), 1.0)], SIGMAS)
    with pytest.raises(ProtocolError, match="17 keypoints"):
        keypoints.evaluate(people, [Pose(3, np.zeros((5, 2)), 1.0)], SIGMAS)
    with pytest.raises(ProtocolError, match="not finite"):
        keypoints.evaluate(people, [Pose(3, np.full((17, 2), np.nan), 1.0)], SIGMAS)
