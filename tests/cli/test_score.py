"""`evalkit score davis`: what it prints, that it is the arithmetic's number, and folders of results that are not whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evalkit.cli.main import main
from evalkit.datasets import indexed
from evalkit.metrics import video
from tests.datasets import dataset_makers as make

TRUTH = np.stack([make.davis_mask(number) for number in range(4)])
GUESS = np.where(np.roll(TRUTH, 1, axis=2) == 255, 0, np.roll(TRUTH, 1, axis=2)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make.davis(tmp_path / "data/DAVIS", {"val": ["cows", "bear"]}, frames=4)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return predicted(tmp_path / "results", {"cows": GUESS, "bear": TRUTH % 255})


def predicted(folder: Path, clips: dict[str, np.ndarray]) -> Path:
    files = {f"{c}/{n:05d}.png": indexed.encode(m) for c, maps in clips.items() for n, m in enumerate(maps)}
    return make.folder(folder, files)


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("EVALKIT_DATA", raising=False)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", "score", "davis", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


def test_it_is_the_number_of_the_arithmetic(root: Path, results: Path, score) -> None:
    code, out, err = score(results, "--data-root", root.parent, "--json")
    assert code == 0, err
    said = json.loads(out)
    expected = video.scores([video.evaluate(GUESS, TRUTH), video.evaluate(TRUTH % 255, TRUTH)])
    assert [(s["name"], s["value"], s["n"]) for s in said["scores"]] == [(s.name, s.value, s.n) for s in expected]
    assert said["videos"]["bear"]["J&F"] == [1.0, 1.0]
    assert said["videos"]["cows"]["J"] == video.evaluate(GUESS, TRUTH).j.mean(axis=1).tolist()
    assert (said["split"], len(said["digest"])) == ("val", 64)


def test_the_table_has_a_row_per_video(root: Path, results: Path, score) -> None:
    code, out, _ = score(results, "--data-root", root)  # the folder of DAVIS itself
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines() if line.startswith("  bear")] == [["bear", "2", "2", "100.0"]]
    assert "means over 4 objects of 2 videos; first and last frames left out" in out
    whole = json.loads(score(results, "--data-root", root, "--json")[1])["scores"][0]
    assert f"J&F        {100 * whole['value']:.1f} %  (2 videos: no interval)" in out
    assert (whole["low"], whole["interval"]) == (None, "none")


def test_one_video_has_no_interval(root: Path, results: Path, score) -> None:
    make.folder(root, {"ImageSets/2017/one.txt": b"bear\n"})
    assert "100.0 %  (1 video: no interval)" in score(results, "--data-root", root, "--split", "one")[1]
    said = json.loads(score(results, "--data-root", root, "--split", "one", "--json")[1])
    assert said["scores"][0]["low"] is None


def test_a_zip_without_first_and_last_frames_and_with_another_clip(
    root: Path, results: Path, tmp_path: Path, score
) -> None:
    files = {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("0000[12].png")}
    archive = make.zipped(tmp_path / "results.zip", files | {"zebra/00001.png": b"nothing"})
    named = ("--data-root", root, "--json")
    assert json.loads(score(archive, *named)[1])["scores"] == json.loads(score(results, *named)[1])["scores"]


def test_frames_and_masks_go_by_number(root: Path, results: Path, score) -> None:
    """1, 2, 9, 10: sorted as text, frame 10 would be scored and frame 9 would be the last, which is not."""
    padded = json.loads(score(results, "--data-root", root.parent, "--split", "all", "--json")[1])
    for place, name in reversed(list(enumerate(("1", "2", "9", "10")))):
        for file in (*root.glob(f"*/480p/*/{place:05d}.*"), *results.glob(f"*/{place:05d}.png")):
            file.rename(file.with_stem(name))
    unpadded = json.loads(score(results, "--data-root", root.parent, "--split", "all", "--json")[1])
    assert unpadded["scores"] == padded["scores"] and unpadded["videos"] == padded["videos"]
    for file in results.glob("*/10.png"):
        file.unlink()
    assert json.loads(score(results, "--data-root", root.parent, "--json")[1])["scores"] == padded["scores"]
    for file in results.glob("*/9.png"):
        file.unlink()
    assert "cows lacks 1 of 2 masks: 9" in score(results, "--data-root", root.parent)[2]


def test_2016_masks_of_0_and_255(tmp_path: Path, score) -> None:
    root = make.davis(tmp_path / "DAVIS", {"val": ["bear"]}, frames=4, year=2016)
    grey = {
        f"bear/{n:05d}.png": make.encoded(Image.fromarray((m > 0).astype(np.uint8) * 255)) for n, m in enumerate(GUESS)
    }
    folder = make.folder(tmp_path / "results", grey)
    code, out, err = score(folder, "--data", f"davis2016={root}", "--year", 2016, "--json")
    assert code == 0, err
    truth = np.isin(TRUTH, (1, 2)).astype(np.uint8)
    expected = video.evaluate((GUESS > 0).astype(np.uint8), truth)
    assert json.loads(out)["videos"]["bear"]["F"] == expected.f.mean(axis=1).tolist()
    assert "predicted ids [255] in 2 frames" in score(folder, "--data", f"davis2017={_as_2017(root)}")[2]


def _as_2017(root: Path) -> Path:
    ids = {f"Annotations/480p/bear/{n:05d}.png": make.indexed(m) for n, m in enumerate(TRUTH)}
    return make.folder(root, {"ImageSets/2017/val.txt": b"bear\n", **ids})


def test_a_clip_of_two_frames_is_named_or_left_out(root: Path, results: Path, score) -> None:
    for file in root.glob("*/480p/cows/0000[23].*"):
        file.unlink()
    code, out, err = score(results, "--data-root", root.parent)
    assert code and not out
    assert "the clip cows has 2 frame(s); at least 3 are needed" in err and "--skip-broken" in err
    code, out, err = score(results, "--data-root", root.parent, "--skip-broken", "--json")
    assert code == 0 and "evalkit: cows is left out: " in err
    said = json.loads(out)
    assert list(said["videos"]) == ["bear"] and list(said["left_out"]) == ["cows"]


def test_everything_that_is_wrong_is_listed_at_once(root: Path, results: Path, score) -> None:
    (results / "cows/00001.png").unlink()
    make.folder(results, {
        "cows/00002.png": make.encoded(make.plain(24, 18)),
        "bear/00001.png": indexed.encode(make.davis_mask(size=(26, 18)) % 255),
        "bear/00002.png": b"text",
    })  # fmt: skip
    code, out, err = score(results, "--data-root", root)
    assert (code, out) == (1, "")
    for part in (
        "4 problems, so there is no score",
        "cows lacks 1 of 2 masks: 00001",
        "cows/00002.png: is a picture of mode RGB where an index mask is needed",
        "bear/00001.png: is (26, 18) pixels, but the frame is (24, 18)",
        "bear/00002.png: is no image",
        "Expected: <results>/<clip>/<frame>.png",
    ):
        assert part in err


def test_ids_that_the_clip_does_not_have(root: Path, results: Path, score) -> None:
    predicted(results, {"cows": np.where(GUESS == 2, 3, GUESS).astype(np.uint8)})
    _, _, err = score(results, "--data-root", root)
    assert "cows: predicted ids [3] in 2 frames, the first is frame 1; the video has 2 objects" in err


def test_no_results_at_all(root: Path, results: Path, tmp_path: Path, score) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no masks; expected: <results>/<clip>" in score(tmp_path / "empty", "--data-root", root)[2]
    assert "does not exist" in score(tmp_path / "nowhere", "--data-root", root)[2]
    other = predicted(tmp_path / "other", {"zebra": GUESS})
    err = score(other, "--data-root", root)[2]
    assert "cows: no mask at all (2 frames are scored)" in err
    assert "bear: no mask at all (2 frames are scored)" in err


def test_data_that_are_not_there(results: Path, tmp_path: Path, score) -> None:
    code, _, err = score(results, "--data-root", tmp_path / "nowhere")
    assert code == 1
    assert "--data davis2017=PATH" in err


def test_a_split_that_is_not_there(root: Path, results: Path, score) -> None:
    assert "no split 'test-dev'" in score(results, "--data-root", root, "--split", "test-dev")[2]
