"""What stands behind the demo page, without gradio: files refused in words, tokens kept, answers beside slow oracles."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.cli.demo import _named
from evalkit.cli.main import main
from evalkit.errors import UnknownName, Unsupported, UsageError
from evalkit.reporting.demo import answers, drawing, page, photos, server
from evalkit.reporting.demo.answers import Question
from evalkit.reporting.demo.desk import PATCH, Desk
from evalkit.reporting.demo.looker import Kept, Looker
from evalkit.reporting.figures import canvas
from evalkit.types import Preprocessing, Tokens

LIMITS = photos.Limits()
SIDE = 8


class Colours:
    """An encoder whose token is the mean colour of the patch, as pixels of 8 x 8; counts its passes."""

    def __init__(self, offers=("patches",)) -> None:
        self.passes = 0
        self.spec = SimpleNamespace(id="colours", patch=SIDE, offers=frozenset(offers),
                                    preprocessing=Preprocessing(size=64, mean=(0.0,) * 3, std=(1.0,) * 3))  # fmt: skip

    def to(self, device):
        return self

    def encode(self, images):
        self.passes += 1
        cells = torch.nn.functional.avg_pool2d(images, SIDE)
        return (Tokens(None, cells.permute(0, 2, 3, 1)),)

    def attention(self, images, queries):
        """Two heads: all on the first patch, and on the patch that asks (the class token asks the last one)."""
        count = images.shape[2] * images.shape[3] // SIDE**2
        rows = torch.zeros(1, 2, 1, count + 1)
        rows[0, 0, 0, 1] = rows[0, 1, 0, -1 if queries == ("cls",) else 1 + queries[0]] = 1
        return rows


def saved(folder: Path, colours, name="photo.png", side=40) -> Path:
    """A photograph of blocks; colours: rows of RGB."""
    blocks = np.repeat(np.repeat(np.array(colours, np.uint8), side, axis=0), side, axis=1)
    Image.fromarray(blocks).save(folder / name)
    return folder / name


RED, ORANGE, BLUE, GREY = (250, 10, 10), (250, 60, 10), (10, 10, 250), (120, 120, 120)


@pytest.fixture
def photo(tmp_path):
    return photos.read(saved(tmp_path, [[RED, BLUE, RED], [ORANGE, BLUE, BLUE]]), LIMITS)


@pytest.fixture
def looker():
    made = Colours()
    found = Looker(["colours"], lambda name: made, size=24)
    found.made = made
    return found


def inside(photo, column: int, row: int, columns: int = 3, rows: int = 2) -> tuple[int, int]:
    """A point in the middle of a block."""
    width, height = photo.shown.size
    return int((column + 0.5) * width / columns), int((row + 0.5) * height / rows)


# ---------------------------------------------------------------- files


def test_a_photograph_is_read_whole_and_shown_small(tmp_path):
    Image.new("RGB", (960, 100)).save(tmp_path / "wide.png")
    found = photos.read(tmp_path / "wide.png", LIMITS, at=(0.25, 0.5))
    assert (found.image.size, found.shown.size, found.name, found.at) == ((960, 100), (480, 50), "wide.png", (120, 25))
    again = photos.read(saved(tmp_path, [[RED]], "again.png"), LIMITS)
    assert again.key != found.key


def test_an_image_one_pixel_high_can_be_shown(tmp_path, looker):
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    thin = photos.read(tmp_path / "line.png", LIMITS)
    assert thin.shown.size == (480, 1)
    assert answers.similar(looker, Question("colours", thin, (479, 0))).cosines.shape == (1, 3)


def test_what_is_refused(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no picture, but a name that ends in .png")
    cut = tmp_path / "cut.jpg"
    Image.new("RGB", (64, 64), RED).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    large = saved(tmp_path, [[RED]], "large.png", side=300)
    cases = [
        (text, LIMITS, "is no image: it begins with"),
        (text, LIMITS, "Choose a photograph: JPEG, PNG"),
        (cut, LIMITS, "cannot be decoded"),
        (large, photos.Limits(max_mb=1e-4), "at most 0.0001 MB"),
        (large, photos.Limits(max_megapixels=0.08), "has 300 x 300 pixels; at most 0.08 million"),
        (tmp_path / "absent.png", LIMITS, "cannot be read"),
    ]
    for path, limits, message in cases:
        with pytest.raises(UsageError, match=message.replace("(", r"\(")) as refused:
            photos.read(path, limits)
        assert path.name in str(refused.value) and str(tmp_path) not in str(refused.value)
    assert photos.read(large, photos.Limits(max_megapixels=0.09)).image.size == (300, 300)
    with pytest.raises(UsageError, match="both are above 0"):
        photos.Limits(max_mb=0)


def test_only_uploads_are_read(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    own, foreign = saved(folder, [[RED]]), saved(tmp_path, [[RED]], "foreign.png")
    (folder / "link.png").symlink_to(foreign)
    assert photos.uploaded(str(own), folder, LIMITS).name == "photo.png"
    for path in (foreign, folder / "link.png", folder / ".." / "foreign.png"):
        with pytest.raises(UsageError, match="was not uploaded"):
            photos.uploaded(str(path), folder, LIMITS)


def test_absent_examples_are_left_out(monkeypatch, tmp_path):
    assert [one.name for one in photos.examples(LIMITS)] == list(photos.EXAMPLES)
    folder = tmp_path / "coco" / "val2017"
    folder.mkdir(parents=True)
    monkeypatch.setattr(photos.catalog, "shipped_data", lambda: tmp_path)
    with pytest.raises(UsageError, match="none of the shipped photographs"):
        photos.examples(LIMITS)
    saved(folder, [[RED]], "000000555705.png").rename(folder / "000000555705.jpg")
    assert [one.name for one in photos.examples(LIMITS)] == ["cats"]


# ---------------------------------------------------------------- tokens


def test_the_oldest_is_forgotten_first():
    kept, made = Kept(2), []

    def get(key):
        return kept.get(key, lambda: made.append(key) or key)

    for key in "abacab":
        assert get(key) == key
    assert made == ["a", "b", "c", "b"] and len(kept) == 2


def test_a_photograph_is_encoded_once(looker, photo, tmp_path):
    for at in ((5, 5), (200, 100), (400, 200)):
        answers.similar(looker, Question("colours", photo, at))
    assert looker.made.passes == 1
    other = photos.read(saved(tmp_path, [[GREY]], "grey.png"), LIMITS)
    for _ in range(2):
        answers.nearest(looker, Question("colours", photo, (5, 5)), [other, photo])
    assert looker.made.passes == 2


def test_only_offered_encoders_are_asked(looker, photo):
    with pytest.raises(UnknownName, match="no encoder on this page named 'dino'"):
        answers.similar(looker, Question("dino", photo, (0, 0)))
    with pytest.raises(UsageError, match="--size 4"):
        Looker(["colours"], lambda name: looker.made, size=4).seen("colours", photo)


# ---------------------------------------------------------------- answers


def test_similarity_is_the_cosine_of_colours(looker, photo):
    found = answers.similar(looker, Question("colours", photo, inside(photo, 2, 0)))
    assert found.prompt == (0, 2) and found.cosines.shape == (2, 3)
    fed = np.asarray(looker.seen("colours", photo).picture, np.float64)
    means = fed.reshape(2, SIDE, 3, SIDE, 3).mean((1, 3))
    expected = [[m @ means[0, 2] / np.linalg.norm(m) / np.linalg.norm(means[0, 2]) for m in row] for row in means]
    assert np.allclose(found.cosines, expected, atol=1e-5)
    assert found.cosines[0, 0] > 0.99 > found.cosines[1, 0] > 0.97 > 0.2 > found.cosines[0, 1]
    with pytest.raises(UsageError, match="outside the image"):
        answers.similar(looker, Question("colours", photo, (photo.shown.width, 0)))


def test_the_mask_is_what_exceeds_the_threshold(looker, photo):
    found = answers.similar(looker, Question("colours", photo, inside(photo, 0, 0)))
    width, height = photo.shown.size
    for threshold in (0.0, 0.5, 0.985, 0.9999):
        mask = drawing.mask(photo, found, threshold)
        assert mask.shape == (height, width)
        for y in range(7, height, 40):
            for x in range(7, width, 40):
                assert mask[y, x] == (found.cosines[y * 2 // height, x * 3 // width] > np.float32(threshold))


def slow_nearest(bank, query, own, top):
    """The same by sorting everything and passing over what touches, one by one."""
    rows = bank.rows.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    places = [(p, r, c) for p, one in enumerate(bank.seen) for r in range(one.grid[0]) for c in range(one.grid[1])]
    order = sorted(range(len(rows)), key=lambda i: (-round(float(unit[i] @ unit[query]), 6), i))
    taken, found = [places[query]], []
    for i in order:
        near = any(
            p[0] == places[i][0] and abs(p[1] - places[i][1]) < 2 and abs(p[2] - places[i][2]) < 2 for p in taken
        )
        if not near and (own or places[i][0] > 0) and len(found) < top:
            taken.append(places[i])
            found.append(places[i])
    return found


@pytest.mark.parametrize("own", [True, False])
def test_nearest_patches_do_not_touch(own, tmp_path):
    draws = np.random.default_rng(3)
    read = [
        photos.read(saved(tmp_path, draws.integers(0, 255, (5 + i, 6, 3)), f"{i}.png", 20), LIMITS) for i in range(3)
    ]
    looker = Looker(["colours"], lambda name: Colours(), size=48)
    asked = Question("colours", read[0], (170, 90))
    bank, found = answers.nearest(looker, asked, read, own=own, top=9)
    assert len(bank.photos) == 3  # the photograph that asks is among the others and counts once
    assert [(n.photo, n.row, n.column) for n in found] == slow_nearest(bank, asked.patch(bank.seen[0].grid), own, 9)
    assert [n.similarity for n in found] == sorted((n.similarity for n in found), reverse=True)
    image, caption = drawing.tile(bank, found[0])
    assert image.size == (drawing.TILE, drawing.TILE) and caption.endswith(read[found[0].photo].name)


def test_without_others_nothing_is_near(looker, photo):
    assert answers.nearest(looker, Question("colours", photo, (0, 0)), [])[1] == []


def test_two_photographs(looker, photo, tmp_path):
    other = photos.read(saved(tmp_path, [[BLUE, RED], [GREY, BLUE]], "other.png"), LIMITS)
    found = answers.pair(looker, Question("colours", photo, inside(photo, 0, 0)), other)
    rows, columns = found.cosines.shape
    assert (found.best[0] < rows // 2) and (found.best[1] >= columns // 2)  # where it is red
    unit = torch.nn.functional.normalize(found.seen[1].tokens, dim=1) @ torch.nn.functional.normalize(
        found.seen[0].tokens[0], dim=0
    )
    assert np.allclose(found.cosines.ravel(), unit.numpy(), atol=1e-6)
    assert drawing.lines(found).width > 300 and drawing.partner(found, photo, other).width > photo.shown.width


def test_attention_of_class_token_and_patch(photo, tmp_path):
    desk = Desk(
        Looker(["c"], lambda name: Colours(("patches", "cls", "attention")), size=24), (photo,), LIMITS, tmp_path
    )
    asked = Question("c", photo, inside(photo, 1, 1))
    of_class, of_patch = (answers.heads(desk.looker, asked, of_patch=flag) for flag in (False, True))
    assert of_class.weights.shape == (2, 2, 3) and of_class.kept[1].tolist() == [[False] * 3, [False, False, True]]
    assert of_patch.kept[1].tolist() == [[False] * 3, [False, True, False]]
    tiles, said = desk.heads("c", photo, asked.at, PATCH)
    assert [name for _, name in tiles] == ["mean", "head 0", "head 1"] and "2 heads" in said


def test_without_attention_there_are_words(looker, photo, tmp_path):
    with pytest.raises(Unsupported):
        answers.heads(looker, Question("colours", photo, (0, 0)))
    tiles, said = Desk(looker, (photo,), LIMITS, tmp_path).heads("colours", photo, (0, 0), PATCH)
    assert tiles == [] and said == "Nothing to show: colours has no attention."


def test_a_click_draws_and_says(looker, photo, tmp_path):
    desk = Desk(looker, (photo,), LIMITS, tmp_path)
    at = inside(photo, 0, 0)
    pointed, heat, mask, said = desk.click("colours", photo, at, 0.9)
    assert pointed.size == mask.size == photo.shown.size and heat.height > photo.shown.height
    assert canvas.VERMILION in {colour for _, colour in pointed.getcolors(1 << 20)}
    assert "**50 %** of the patches are more similar than 0.90" in said
    again, words = desk.slide("colours", photo, at, 0.985)
    assert "**33 %**" in words and np.asarray(again).tobytes() != np.asarray(mask).tobytes()
    assert np.array_equal(np.asarray(desk.slide("colours", photo, at, 0.9)[0]), np.asarray(mask))
    assert desk.examples[0].shown.getpixel((5, 5)) == photo.image.getpixel(
        (0, 0)
    )  # nothing is drawn into the photograph


# ---------------------------------------------------------------- serving


def test_addresses_are_not_fetched():
    async def move(path):
        return f"moved {path}"

    moved = page._no_addresses(move)
    assert asyncio.run(moved("/uploads/a.png")) == "moved /uploads/a.png"
    for address in ("http://example.com/a.png", "HTTPS://example.com/a.png", "ftp://example.com/a"):
        with pytest.raises(UsageError, match="an address is no upload"):
            asyncio.run(moved(address))


def test_a_taken_port_and_a_foreign_address_are_said():
    assert server.Address(port=0).free() > 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}.*choose another --port"):
            server.Address(port=port).free()
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        server.Address("192.0.2.1", 0).free()
    assert server.Address().host == "127.0.0.1"


def test_settings_of_the_surroundings_do_not_count(monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/etc")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    before = dict(os.environ)
    with server._settings(server.environment(Path("uploads"))):
        assert "GRADIO_SHARE" not in os.environ and "GRADIO_ALLOWED_PATHS" not in os.environ
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["GRADIO_TEMP_DIR"] == "uploads"
    assert dict(os.environ) == before


@pytest.fixture
def said(capsys, monkeypatch):
    """Run `evalkit demo`: exit code and what was complained of."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evalkit", "demo", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


def test_without_gradio_the_extra_is_named(said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    code, error = said("pixels", "--port", "0")
    assert code == 1
    assert (
        error
        == "evalkit: the demo page needs the extra 'demo': pip install -e '.[demo]' in the clone (make setup has it)"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["micro-dion"], "Did you mean micro-dino"),
        (["micro-dino", "pixels", "--family", "dino"], "are for one weights file"),
        (["pixels", "--max-mb", "0"], "--max-mb 0"),
        (["pixels", "--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1"),
        (["pixels", "--host", "::1"], "--host ::1: the page listens to a name or an IPv4 address"),
    ],
)
def test_what_cannot_be_served(words, message, said, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    code, error = said(*words)
    assert code == 1 and message in error


def test_files_are_called_by_their_names():
    assert _named(["micro-dino", "a/x.pth"]) == {"micro-dino": "micro-dino", "x.pth": "a/x.pth"}
    assert _named(["a/x.pth", "b/x.pth"]) == {"a/x.pth": "a/x.pth", "b/x.pth": "b/x.pth"}


def test_nothing_heavy_is_loaded_with_the_command():
    code = "import sys, evalkit.cli.main; print({'gradio', 'torch', 'PIL'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
