"""Neighbours in order, and the patches that a folder is cut into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from evalkit.errors import DatasetError, FeatureError, MissingFiles, NoProjection, ProtocolError, UsageError
from evalkit.reporting import search
from evalkit.reporting.figures import canvas, gallery
from tests.datasets.dataset_makers import encoded, folder


def test_neighbours_agree_with_a_plain_sort():
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = search.ranked(rows, 7, top=12)
    cosine = F.cosine_similarity(rows[7:8], rows)
    slow = sorted((i for i in range(30) if i != 7), key=lambda i: -float(cosine[i]))[:12]
    assert list(found.rows) == slow
    assert found.similarity == pytest.approx(cosine[slow].tolist(), abs=1e-6)


def test_ties_go_by_number_and_what_is_left_out_does_not_compete():
    rows = torch.ones(6, 2)
    assert search.ranked(rows, 2, top=9).rows == (0, 1, 3, 4, 5)
    gone = torch.tensor([True, False, False, True, False, False])
    assert search.ranked(rows, 2, top=9, left_out=gone).rows == (1, 4, 5)
    with pytest.raises(UsageError, match="at least 1"):
        search.ranked(rows, 0, top=0)
    with pytest.raises(FeatureError, match="finite"):
        search.ranked(rows * torch.nan, 0, top=1)


def photos(root: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)) for _ in range(count)]
    return folder(root, {f"sub/{i}.png": encoded(image) for i, image in enumerate(images)} | {"notes.txt": b"no image"})


def test_patches_are_those_of_the_released_loader(tmp_path: Path):
    """Resize 256 and centre crop 224, enlarged to 896, cut into 7 x 7 inputs of 224."""
    found, first = search.patches(photos(tmp_path))
    assert (len(found), first, found[0].id) == (3 * 49, 0, "sub/0.png:0,0")
    small = transforms.Compose([transforms.Resize(256, interpolation=3), transforms.CenterCrop(224)])
    with Image.open(tmp_path / "sub/1.png") as image:
        large = transforms.Resize(896, interpolation=3)(small(image))
    corners = [(top, left) for top in range(0, 896 - 224 + 1, 112) for left in range(0, 896 - 224 + 1, 112)]
    assert len(corners) == 49
    for number, (top, left) in enumerate(corners):
        sample = found[49 + number]
        assert sample.box == (left, top, left + 224, top + 224)
        assert sample.id == f"sub/1.png:{top // 112},{left // 112}"
    mine = found.image("sub/1.png").crop(tuple(map(int, found[49 + 10].box)))
    assert mine.tobytes() == large.crop((336, 112, 560, 336)).tobytes()


def test_a_limit_spreads_over_the_names_and_keeps_the_query(tmp_path: Path):
    root = photos(tmp_path, 8)
    assert search.patches(root, limit=2)[0].groups == ("sub/0.png", "sub/4.png")
    found, place = search.patches(root, query="sub/3.png:2,6", limit=2)
    assert found.groups == ("sub/0.png", "sub/3.png", "sub/4.png")
    assert found[place].id == "sub/3.png:2,6"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sub/1.png", "FILE:ROW,COL"),
        ("sub/1.png:1", "FILE:ROW,COL"),
        ("sub/1.png:-1,2", "FILE:ROW,COL"),
        ("sub/1.png:7,0", "7 x 7 patches"),
        ("sub/1.jpg:0,0", r"nearest: .*sub/1\.png"),
        ("1.png:0,0", r"sub/1\.png"),
    ],
)
def test_queries_that_cannot_be_are_told(tmp_path: Path, query: str, says: str):
    with pytest.raises(UsageError, match=says):
        search.patches(photos(tmp_path), query=query)


def test_folders_without_images_are_told(tmp_path: Path):
    with pytest.raises(MissingFiles, match="does not exist"):
        search.patches(tmp_path / "nothing")
    folder(tmp_path / "texts", {"a.txt": b"a"})
    with pytest.raises(ProtocolError, match="holds no image"):
        search.patches(tmp_path / "texts")
    with pytest.raises(UsageError, match="at least 1"):
        search.patches(photos(tmp_path / "photos"), limit=0)


class Headless:
    class spec:
        id, dim = "headless", 4
        offers = frozenset({"cls", "patches"})

    def project(self, tokens, at="output"):
        raise NoProjection("no head")


def test_the_projection_is_shown_where_there_is_one():
    rows = {"cls": torch.randn(5, 4), "mean": torch.randn(5, 4)}
    show = lambda encoder, projected: search.representations(
        encoder, rows.__getitem__, "mean", projected=projected, device=torch.device("cpu")
    )
    assert [title for title, _ in show(Headless(), None)] == ["Encoded (mean of patch tokens)"]
    with pytest.raises(NoProjection):
        show(Headless(), True)

    class Headed(Headless):
        def project(self, tokens, at="output"):
            return tokens.cls * 2

    assert [title for title, _ in show(Headed(), None)][1].startswith("Projected")
    assert bool((show(Headed(), True)[1][1] == rows["cls"] * 2).all())
    assert len(show(Headed(), False)) == 1


@pytest.mark.parametrize("count", [1, 7, 24, 48])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_gallery_has_a_tile_per_neighbour(count: int, blocks: int):
    tile = Image.new("RGB", (30, 30), (1, 2, 3))
    near = [gallery.Neighbour(tile, 0.9 - i / 100, "bag", i % 2 == 0) for i in range(count)]
    drawn = gallery.gallery(
        tile, [gallery.Block(f"block {i}", near, "note") for i in range(blocks)], title="t", note="n", caption="q\nid"
    )
    pixels = np.asarray(drawn).reshape(-1, 3)
    right, wrong = ((pixels == frame.colour).all(axis=1).sum() for frame in (canvas.RIGHT, canvas.WRONG))
    assert (right > 0, wrong > 0) == (True, True)  # the legend at least
    inside = (pixels == (1, 2, 3)).all(axis=1).sum()
    assert inside > blocks * count * 80 * 80
    assert drawn.width < 1700


def test_a_marked_part_is_framed_inside_its_box():
    whole = Image.new("RGB", (150, 150), (9, 9, 9))
    changed = (np.asarray(gallery.marked(whole, (30, 40, 80, 90))) != 9).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 89, 30, 79)
    assert not changed[50:80, 40:70].any()


def test_the_folder_of_a_patch_search_is_used_whole_or_told(tmp_path: Path):
    root = photos(tmp_path)
    assert search.patches(root)[0].describe()["files_passed_over"] == {".txt": 1}
    (root / "sub/1.png").rename(root / "sub/1.heic")
    with pytest.raises(DatasetError, match=r"1 images have endings that are not read: sub/1\.heic;"):
        search.patches(root)
