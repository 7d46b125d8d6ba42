"""The runner of label propagation: against a restatement of the published procedure, and what a run leaves behind."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Barrier
from threading import enumerate as enumerate_threads
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit import catalog, runners
from evalkit.cli.main import main
from evalkit.engine.evaluate import Options, Session, evaluate, load
from evalkit.engine.job import FileCheckpoint
from evalkit.errors import BrokenImage, CatalogError, FeatureError, ProtocolError, UsageError
from evalkit.metrics import video as measures
from evalkit.runners import video
from evalkit.types import Checkpoint, Preprocessing, Sample, Tokens
from tests.datasets import dataset_makers as make
from tests.runners import plain_video as plain
from tests.runners.fakes import Memory
from tests.waiting import HANG

SHARED = Path(__file__).resolve().parents[3] / "shared"
DAVIS16, WEIGHTS = SHARED / "data/davis16", SHARED / "weights/vit_small_patch14_focus.fp16.safetensors"
RELEASED_STD = (0.228, 0.224, 0.225)


@dataclass(frozen=True)
class Film:
    """frames: (T, H, W, 3) uint8. truth: (T, H, W) uint8. broken: frames that cannot be decoded. bare: without a mask."""

    frames: np.ndarray
    truth: np.ndarray
    broken: tuple[int, ...] = ()
    bare: tuple[int, ...] = ()


def film(seed, frames=7, size=(40, 56), objects=2):
    """Squares of their own texture that move over noise."""
    rng = np.random.default_rng(seed)
    pictures = np.repeat(rng.integers(0, 120, (1, *size, 3), dtype=np.uint8), frames, 0)
    truth = np.zeros((frames, *size), np.uint8)
    for label in range(1, objects + 1):
        patch = rng.integers(60, 256, (14, 14, 3), dtype=np.uint8)
        for t in range(frames):
            y, x = 3 + (label - 1) * 20, 2 + 5 * t
            pictures[t, y : y + 14, x : x + 14] = patch
            truth[t, y : y + 14, x : x + 14] = label
    return Film(pictures + rng.integers(0, 9, pictures.shape, dtype=np.uint8) % 5, truth)


class Films:
    def __init__(self, *films):
        self.films = films

    def __len__(self):
        return len(self.films)

    def __getitem__(self, index):
        return Sample(f"film{index}", f"film{index}", -1)

    def frames(self, index):
        return tuple(f"{number:05d}" for number in range(len(self.films[index].frames)))

    def frame(self, index, number):
        if number in self.films[index].broken:
            raise BrokenImage(f"film{index}/{number}")
        return Image.fromarray(self.films[index].frames[number])

    def truth(self, index, number):
        return None if number in self.films[index].bare else self.films[index].truth[number]


class Cutter:
    """An encoder whose tokens are the pixels of each patch, doubled by the final norm."""

    def __init__(self, patch=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)):
        self.spec = SimpleNamespace(
            id="cutter", patch=patch, dim=3 * patch**2, preprocessing=Preprocessing(8, mean, std)
        )
        self.batches, self.bad = [], False

    def encode(self, images, blocks=(-1,), norm=True):
        assert tuple(blocks) == (-1,)
        self.batches.append(len(images))
        b, _, h, w = images.shape
        p = self.spec.patch
        rows = images.view(b, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(3)
        rows = torch.tanh(rows) if norm else rows
        return (Tokens(None, rows / 0 if self.bad else rows),)


@dataclass
class ClipJob:
    clips: Films
    config: video.Config
    encoder: Cutter = field(default_factory=Cutter)
    seed: int = 0
    skip: bool = False
    stop_after: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: Checkpoint = field(default_factory=Memory)
    facts: dict = field(default_factory=dict)
    delivered: dict = field(default_factory=dict)

    def dataset(self, role):
        assert role == "test"
        return self.clips

    def read(self, role, reader, items, ahead=True):
        for item in items:
            try:
                answer = reader(self.clips, *item)
            except BrokenImage:
                if not self.skip:
                    raise
                continue
            yield item, answer

    def encode(self, images, blocks=(-1,), norm=True):
        return self.encoder.encode(images, blocks, norm)

    def track(self, steps, what, total=None):
        for number, step in enumerate(steps):
            if number == self.stop_after:
                raise KeyboardInterrupt
            yield step

    def fact(self, name, value):
        self.facts[name] = value

    def deliver(self, name, labels):
        self.delivered[name] = labels


SMALL = {"short": 40, "multiple": 8, "radius": 3}


def job(*films, encoder=None, config=(), **kwargs):
    return ClipJob(Films(*films), video.Config(**{**SMALL, **dict(config)}), encoder or Cutter(), **kwargs)


def plain_maps(of, encoder, *, mean, std, radius=3, norm=True, short=40, multiple=8):
    """(T, H, W) as the published procedure makes them, each frame encoded alone."""
    patch, original = encoder.spec.patch, of.truth.shape[1:]
    size = plain.size_of(*original, short, multiple)
    images = [plain.frame_tensor(frame, size, mean, std)[None] for frame in of.frames]
    features = torch.cat([encoder.encode(image, norm=norm)[0].patches for image in images])
    first = plain.first_labels(of.truth[0], (size[0] // patch, size[1] // patch))
    soft = plain.soft_labels(features, first, radius=radius)
    return np.stack([of.truth[0], *(plain.label_map(labels, patch, original) for labels in soft[1:])])


@pytest.mark.parametrize("objects", [1, 3])
def test_maps_are_those_of_the_published_procedure(objects):
    of = film(objects, size=(64, 80), objects=objects)
    asked = job(of, config={"std": RELEASED_STD, "mean": (0.485, 0.456, 0.406)})
    expected = plain_maps(of, Cutter(), mean=(0.485, 0.456, 0.406), std=RELEASED_STD)
    found = video.predicted(asked, 0)
    assert found.dtype == np.uint8 and set(np.unique(expected)) == set(range(objects + 1))
    assert np.array_equal(found, expected)


def test_mean_std_and_norm_are_the_encoders_own_unless_the_recipe_says_otherwise():
    of = film(1)
    own = plain_maps(of, Cutter(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    bare = plain_maps(of, Cutter(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), norm=False)
    assert np.array_equal(video.predicted(job(of), 0), own)
    assert np.array_equal(video.predicted(job(of, config={"norm": False}), 0), bare)
    assert not np.array_equal(own, bare), "otherwise this test says nothing"


def test_scores_are_those_of_the_maps():
    films = [film(1), film(2, objects=1), film(3)]
    asked = job(*films)
    scores = {score.name: score for score in video.run(asked)}
    expected = [measures.evaluate(video.predicted(asked, i), one.truth) for i, one in enumerate(films)]
    objects = np.concatenate([clip.per_object for clip in expected])
    assert list(scores) == ["J&F", "J", "J-recall", "J-decay", "F", "F-recall", "F-decay"]
    assert scores["J&F"].value == pytest.approx(objects.mean(), abs=1e-12)
    assert scores["J&F"].groups.tolist() == [0, 0, 1, 2, 2] and scores["J&F"].n == 5
    np.testing.assert_allclose(scores["J&F"].outcomes, objects, atol=1e-6)
    rows = asked.facts["videos"]
    assert list(rows) == ["film0", "film1", "film2"]
    assert rows["film1"]["J"] == pytest.approx(expected[1].j.mean())
    assert rows["film0"] | {"J&F": 0, "J": 0, "F": 0} == {
        "J&F": 0, "J": 0, "F": 0, "original": [40, 56], "size": [40, 56], "objects": 2, "frames": 7, "scored_frames": 5,
    }  # fmt: skip
    assert "sizes" not in asked.facts


def test_every_map_is_delivered_under_the_name_of_its_frame():
    asked = job(film(1), film(2))
    list(video.run(asked))
    assert sorted(asked.delivered) == [f"film{clip}/{frame:05d}" for clip in range(2) for frame in range(7)]
    assert np.array_equal(asked.delivered["film0/00000"], asked.clips.films[0].truth[0]), "the first as given"
    maps = video.predicted(asked, 1)
    assert all(np.array_equal(asked.delivered[f"film1/{frame:05d}"], maps[frame]) for frame in range(7))


def test_a_killed_run_goes_on_at_the_next_clip_with_the_same_result(tmp_path):
    films = [film(seed) for seed in range(4)]
    whole = job(*films)
    expected = list(video.run(whole))
    killed = job(*films, stop_after=2, checkpoint=FileCheckpoint(tmp_path / "state.pt"))
    with pytest.raises(KeyboardInterrupt):
        list(video.run(killed))
    resumed = job(*films, checkpoint=killed.checkpoint)
    found = list(video.run(resumed))
    assert sum(resumed.encoder.batches) == 2 * 7, "two clips are left"
    assert resumed.facts == whole.facts
    for one, other in zip(found, expected, strict=True):
        assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
        assert np.array_equal(one.outcomes, other.outcomes)


@pytest.fixture
def threads():
    """Sets torch's threads, and gives them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_clips_side_by_side_are_the_same_as_one_after_another(threads):
    films = [
        film(seed, frames=4 + 2 * (seed % 3), size=(40, 56 + 8 * (seed % 2)), objects=1 + seed % 2) for seed in range(7)
    ]
    films[2] = replace(films[2], broken=(1,))
    found = []
    for count in (1, 3, 16):
        threads(count)
        asked = job(*films, skip=True)
        scores = list(video.run(asked))
        found.append((scores, asked.facts, asked.delivered))
    for scores, facts, delivered in found[1:]:
        assert json.dumps(facts) == json.dumps(found[0][1]), "the order of the videos too"
        assert sorted(delivered) == list(found[0][2])
        assert all(np.array_equal(delivered[name], labels) for name, labels in found[0][2].items())
        for one, other in zip(scores, found[0][0], strict=True):
            assert (one.name, one.value, one.low, one.high) == (other.name, other.value, other.low, other.high)
            assert one.outcomes.tobytes() == other.outcomes.tobytes() and one.groups.tolist() == other.groups.tolist()


class Gate(Cutter):
    """Lets clips go on only while as many as `parties` are followed at the same time."""

    def __init__(self, parties):
        super().__init__()
        self.together = Barrier(parties, timeout=HANG)

    def encode(self, images, blocks=(-1,), norm=True):
        self.together.wait()
        return super().encode(images, blocks, norm)


def test_as_many_clips_as_torch_has_threads_are_followed_at_once(threads, monkeypatch):
    threads(3)
    assert len(list(video.run(job(*(film(seed) for seed in range(6)), encoder=Gate(3))))) == 7
    monkeypatch.setattr(video, "AT_ONCE", 2)
    list(video.run(job(*(film(seed) for seed in range(4)), encoder=Gate(2))))
    threads(1)
    list(video.run(job(film(1), film(2), encoder=Gate(1))))


def test_an_error_or_an_interrupt_ends_the_clips_beside_it(threads):
    threads(2)
    films = [Film(of.frames.repeat(6, 0), of.truth.repeat(6, 0)) for of in map(film, range(8))]
    films[0] = Film(films[0].frames[:5], films[0].truth[:5], bare=(0,))
    asked = job(*films)
    with pytest.raises(ProtocolError, match="film0: the first frame has no mask") as caught:
        list(video.run(asked))
    assert sum(asked.encoder.batches) < 4 * 42, "it went on with other clips"
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("lane")], caught
    asked = job(*films[1:], stop_after=1)
    with pytest.raises(KeyboardInterrupt) as stopped:
        list(video.run(asked))
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("lane")], stopped
    assert len(asked.checkpoint.load()["clips"]) == 1 and torch.get_num_threads() == 2


def test_frames_go_through_the_encoder_in_batches_that_do_not_change_the_result(monkeypatch):
    of = film(1)
    alone, together = job(of), job(of)
    monkeypatch.setitem(video.TOKENS, "cpu", 1)
    one = video.predicted(alone, 0)
    monkeypatch.setitem(video.TOKENS, "cpu", 3 * 140)
    assert np.array_equal(video.predicted(together, 0), one)
    assert (alone.encoder.batches, together.encoder.batches) == ([1] * 7, [3, 3, 1])


def test_soft_labels_in_half_precision_give_the_same_scores():
    films = [film(seed, frames=9, size=(40, 64)) for seed in range(3)]
    exact, half = (next(iter(video.run(job(*films, config={"labels": kind})))).value for kind in ("float32", "float16"))
    assert half == pytest.approx(exact, abs=1e-3)


def test_sizes_that_the_patch_does_not_divide_are_told():
    asked = job(film(1), encoder=Cutter(patch=6))
    list(video.run(asked))
    assert asked.facts["sizes"] == "no multiple of the patch (6): 40 x 56: 36 x 54"
    assert asked.facts["videos"]["film0"]["size"] == [36, 54]


def test_broken_frames_stop_the_run_or_leave_their_clip_out():
    for broken in ((0,), (3,), (6,)):
        films = [film(1), replace(film(2), broken=broken), film(3)]
        with pytest.raises(BrokenImage):
            list(video.run(job(*films)))
        asked = job(*films, skip=True)
        scores = list(video.run(asked))
        assert scores[0].n == 4
        assert asked.facts["left_out"] == {
            "videos": ["film1"],
            "because": "a frame or mask is broken, or too few frames",
        }
        with pytest.raises(ProtocolError, match="film1: a frame is broken"):
            video.predicted(asked, 1)
    with pytest.raises(ProtocolError, match="no clip could be read"):
        list(video.run(job(films[1], skip=True)))


SHORT = {
    "two frames": (2, 2, r"film has 2 frame\(s\)"),
    "two masks": (5, 2, r"film has 2 annotated frame\(s\) of 5"),
    "one mask": (5, 1, r"film has 1 annotated frame\(s\) of 5"),
}


@pytest.mark.parametrize("kind", SHORT)
def test_clips_that_are_too_short_to_be_scored_are_named_counted_and_may_be_skipped(tmp_path, kind):
    frames, masks, says = SHORT[kind]
    root = make.davis(tmp_path / "set", {"val": ["bear", "film"]}, frames=5)
    for number in range(5):
        if number >= frames:
            (root / f"JPEGImages/480p/film/{number:05d}.jpg").unlink()
        if number >= masks:
            (root / f"Annotations/480p/film/{number:05d}.png").unlink()
    recipe = catalog.recipe("mini-video")
    wanted = replace(recipe, dataset=replace(recipe.dataset, folder="set", shipped=False, config={"sparse": True}))
    options = Options(data_root=tmp_path, out=tmp_path / "runs", cache=tmp_path / "cache")
    (failed,) = Session(options).run(load("pixels"), [wanted], {})
    assert isinstance(failed.error, BrokenImage) and "\n" not in str(failed.error)
    assert re.search(says + r"; at least 3 are needed.*--skip-broken", str(failed.error))
    (made,) = Session(replace(options, skip_broken=True)).run(load("pixels"), [wanted], {})
    assert list(made.record.facts["videos"]) == ["bear"] and made.record.score()["n"] == 2
    assert made.record.facts["left_out"]["videos"] == ["film"]
    assert made.record.data["test"]["skipped"] == ["film"]


def test_frames_without_truth_are_followed_and_not_scored():
    of = film(1)
    asked = job(Film(of.frames, of.truth, bare=(2, 3)))
    list(video.run(asked))
    row = asked.facts["videos"]["film0"]
    assert (row["frames"], row["scored_frames"]) == (7, 3)
    with pytest.raises(ProtocolError, match="film0: the first frame has no mask"):
        list(video.run(job(Film(of.frames, of.truth, bare=(0,)))))


def test_void_in_a_first_mask_is_background_as_the_scorer_has_it():
    """davis2017-evaluation sets 255 to 0 before it counts objects (davis.py, get_all_masks)."""
    bare = film(1)
    void = bare.truth.copy()
    void[:, -6:] = np.where(void[:, -6:] == 0, measures.VOID, void[:, -6:])
    asked, expected = job(Film(bare.frames, void)), job(bare)
    for found, score in zip(video.run(asked), video.run(expected), strict=True):
        assert (found.value, found.n) == (score.value, score.n)
    assert asked.delivered.keys() == expected.delivered.keys()
    assert all(np.array_equal(labels, asked.delivered[name]) for name, labels in expected.delivered.items())


def test_clips_that_cannot_be_followed_are_named():
    of = film(1)
    with pytest.raises(ProtocolError, match="film0: the first frame's mask holds no object"):
        list(video.run(job(Film(of.frames, of.truth * 0))))
    with pytest.raises(ProtocolError, match="film0: 2 frames"):
        list(video.run(job(Film(of.frames[:2], of.truth[:2]))))
    blind = Cutter()
    blind.bad = True
    with pytest.raises(FeatureError, match="film0: cutter gave patch tokens that are not finite"):
        list(video.run(job(of, encoder=blind)))


def test_an_object_too_small_for_the_grid_is_lost_and_not_an_error():
    of = film(1, objects=1)
    truth = of.truth.copy()
    truth[:, 36, 50] = 2
    scores = {score.name: score for score in video.run(job(Film(of.frames, truth)))}
    assert scores["J"].n == 2 and scores["J"].outcomes[1] == 0


def test_dinov3_changes_geometry_window_and_the_way_to_pixels():
    of = film(1)
    config = {"style": "dinov3", "short": 40, "window": "circle", "temperature": 0.2}
    asked = job(of, encoder=Cutter(patch=6), config=config)
    found = video.predicted(asked, 0)
    from evalkit.probing.frames import Geometry

    geometry = Geometry(6, "dinov3", 40)
    assert geometry.fitted((40, 56)) == (42, 60)
    images = torch.stack([geometry.resized(Image.fromarray(frame)) for frame in of.frames]).float() / 255
    own = asked.encoder.spec.preprocessing
    images = (images - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
    features = asked.encoder.encode(images)[0].patches
    mask = geometry.mask(of.truth[0])
    first = torch.stack([(mask == label).float() for label in range(3)])
    soft = plain.soft_labels(features, first, radius=3, circle=True, temperature=0.2)
    fine = torch.nn.functional.interpolate(soft, (40, 56), mode="nearest").flatten(2)
    low, high = fine.amin(2, keepdim=True), fine.amax(2, keepdim=True)
    expected = ((fine - low) / (high - low)).nan_to_num(0).argmax(1).view(-1, 40, 56)
    assert np.array_equal(found[1:], expected[1:].numpy().astype(np.uint8))


def test_options_that_cannot_be_are_refused():
    wrong = {"every channel's must be above 0": {"std": [0.0, 1.0, 1.0]}}
    wrong |= {"temperature is -1.0": {"temperature": -1.0}, "window": {"window": "disk"}, "short is 0": {"short": 0}}
    for sentence, options in wrong.items():
        with pytest.raises(CatalogError, match=sentence):
            runners.configure("video", options)


def test_the_shipped_clips_are_measured_and_the_control_is_behind():
    record = evaluate("pixels", "mini-video")
    score = record.score()
    assert score["name"] == "J&F" and score["n"] == 6
    assert 0.2 < score["value"] < 0.6 and score["interval"] == "none"  # objects of two clips
    assert {name: row["frames"] for name, row in record.facts["videos"].items()} == {"pasture": 12, "luggage": 12}


def test_soft_labels_in_half_precision_give_the_same_scores_on_real_photographs():
    recipe = catalog.recipe("mini-video")
    half = replace(recipe, config={**recipe.config, "labels": "float16"})
    exact, found = (evaluate("micro-dino", which) for which in (recipe, half))
    assert found.recipe["resolved"]["config"]["labels"] == "float16"
    for one, other in zip(found.scores, exact.scores, strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-3) or "recall" in one["name"]


def test_one_thread_or_two_the_record_says_the_same(threads):
    found = []
    for count in (1, 2):
        threads(count)
        record = evaluate("micro-dino", "mini-video")
        found.append((record.scores, record.facts["videos"]))
    assert found[0] == found[1]


def test_saved_masks_are_scored_the_same_and_made_again_when_asked_again(tmp_path, capsys, monkeypatch):
    masks = tmp_path / "masks"
    options = Options(out=tmp_path / "runs", cache=tmp_path / "cache", save_masks=masks)
    for _ in range(2):
        (outcome,) = Session(options).run(load("pixels"), [catalog.recipe("mini-video")], {})
        assert outcome.record is not None and not outcome.reused
        files = sorted(str(file.relative_to(masks)) for file in masks.rglob("*.*"))
        assert files == [f"{clip}/{frame:05d}.png" for clip in ("luggage", "pasture") for frame in range(12)]
        data = f"davis2017={catalog.shipped_data() / 'video'}"
        monkeypatch.setattr("sys.argv", ["evalkit", "score", "davis", str(masks), "--data", data, "--json"])
        with pytest.raises(SystemExit, match="0"):
            main()
        scored = {score["name"]: score["value"] for score in json.loads(capsys.readouterr().out)["scores"]}
        assert scored == {score["name"]: score["value"] for score in outcome.record.scores}
        for file in masks.rglob("*.png"):
            file.unlink()


def test_one_recipe_prints_a_row_per_video_and_means_with_intervals(tmp_path, capsys, monkeypatch):
    def told(*words):
        capsys.readouterr()
        asked = ["eval", *words, "--out", str(tmp_path / "runs")]
        monkeypatch.setattr("sys.argv", ["evalkit", *asked])
        with pytest.raises(SystemExit, match="0"):
            main()
        return capsys.readouterr()

    (outcome,) = Session(Options(out=tmp_path / "runs")).run(load("pixels"), [catalog.recipe("mini-video")], {})
    out, err = told("pixels", "--recipe", "mini-video")
    assert "reused" in err
    rows, lines = outcome.record.facts["videos"], [line.split() for line in out.splitlines()]
    for name, row in rows.items():
        assert [name, "3", "10", *(f"{100 * row[key]:.1f}" for key in ("J&F", "J", "F"))] in lines
    for score in outcome.record.scores:
        assert [score["name"], f"{100 * score['value']:.1f}", "%", *["(2", "videos:", "no", "interval)"]] in lines
    assert "(n 6: no interval)" in err
    assert "means over 6 objects of 2 videos" in out
    out, err = told("pixels", "--recipe", "mini-video", "--limit", "1")
    assert "(1 video: no interval)" in out and "% (n 3: no interval)" in err


def test_masks_are_asked_of_recipes_that_make_some(tmp_path):
    session = Session(Options(out=None, save_masks=tmp_path / "masks"))
    with pytest.raises(UsageError, match="mini-knn-ccp-items makes no label maps"):
        list(session.run(load("pixels"), [catalog.recipe("mini-knn-ccp-items")], {}))
    with pytest.raises(UsageError, match="one recipe at a time; 2 were asked for"):
        list(session.run(load("pixels"), [catalog.recipe("mini-video"), catalog.recipe("mini-knn-ccp-items")], {}))
    (tmp_path / "file").write_text("")
    session = Session(Options(out=None, save_masks=tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be written"):
        list(session.run(load("pixels"), [catalog.recipe("mini-video")], {}))


def test_masks_of_two_encoders_would_overwrite_each_other(tmp_path, capsys, monkeypatch):
    words = ["eval", "pixels", "random", "--recipe", "mini-video", "--save-masks", str(tmp_path / "masks")]
    monkeypatch.setattr("sys.argv", ["evalkit", *words])
    with pytest.raises(SystemExit):
        main()
    assert "--save-masks is for one encoder at a time, without controls; 2 were given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_map_never_leaves_the_folder(tmp_path):
    from evalkit.engine.delivery import Delivery

    for name in ("../x", "/x", "", "a/../../x", "a\\x"):
        with pytest.raises(ProtocolError, match="must lie inside the folder"):
            Delivery(tmp_path / "masks").put(name, np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- real videos


@cache
def real(clip, frames, short):
    """A real encoder on the first frames of a real clip: our maps, the plain procedure's, its soft labels, the truth."""
    from evalkit.datasets import davis

    clips = davis.open(DAVIS16, "val", davis.Config(year=2016))
    index = [clips[number].id for number in range(len(clips))].index(clip)
    of = Film(
        np.stack([np.asarray(clips.frame(index, number)) for number in range(frames)]),
        np.stack([clips.truth(index, number) for number in range(frames)]),
    )
    encoder = load(WEIGHTS, family="timm", arch="vit_small_patch14_dinov2")
    config = {"short": short, "multiple": 64, "radius": 12, "mean": (0.485, 0.456, 0.406), "std": RELEASED_STD}
    with torch.no_grad():
        found = video.predicted(job(of, encoder=encoder, config=config), 0)
        size = tuple(side // 14 * 14 for side in plain.size_of(480, 854, short))
        images = [plain.frame_tensor(frame, size, config["mean"], RELEASED_STD)[None] for frame in of.frames]
        features = torch.cat([encoder.encode(image)[0].patches for image in images])
    soft = plain.soft_labels(features, plain.first_labels(of.truth[0], (size[0] // 14, size[1] // 14)))
    expected = np.stack([of.truth[0], *(plain.label_map(labels, 14, (480, 854)) for labels in soft[1:])])
    return found, expected, soft, of.truth


@pytest.mark.skipif(
    not (DAVIS16.exists() and WEIGHTS.exists()), reason="../shared holds no DAVIS-2016 or no real weights"
)
@pytest.mark.parametrize(("clip", "frames", "short"), [("car-shadow", 4, 256), ("breakdance", 7, 192)])
def test_real_videos_agree_with_the_published_procedure(clip, frames, short):
    found, expected, soft, truth = real(clip, frames, short)
    differ = found != expected
    leads = np.stack([plain.gap(labels, 14, (480, 854)) for labels in soft])
    assert not differ.any() or float(leads[differ].max()) < 1e-6
    ours, theirs = measures.evaluate(found, truth), measures.evaluate(expected, truth)
    np.testing.assert_allclose(ours.per_object, theirs.per_object, atol=1e-4)
    assert float(theirs.per_object.mean()) > 0.3, (
        "the real encoder follows the object, so that there is something to agree on"
    )
