"""The small trainer: views are what they say, a run resumes bit for bit, and what it saves loads as an encoder."""

from __future__ import annotations

import dataclasses
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evalkit.errors import PretrainError
from evalkit.pretrain import augment
from evalkit.pretrain.corpus import pack
from evalkit.progress import RichProgress

with warnings.catch_warnings():  # lightly's head uses a torch function that torch wants renamed
    warnings.simplefilter("ignore")
    from evalkit.pretrain.dino import DINO, Config
    from evalkit.pretrain.trainer import Run, train

import contextlib

from evalkit.adapters.vit import ViTConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*expandable.*")
TINY = ViTConfig(dim=16, depth=2, heads=2, patch=8, size=32)
SMALL = Config(hidden=16, bottleneck=8, prototypes=32, local_crops=2, global_size=32, local_size=16)


def pixels(n: int = 12, size: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def run_to(out: Path, steps: int, corpus: torch.Tensor, run: Run, facts: dict[str, Any] | None = None) -> DINO:
    """Train as a run of `run.steps` that is stopped after `steps`."""
    method = DINO(TINY, SMALL, seed=0)

    class Stop(Exception):
        pass

    class Counted(RichProgress):
        def track(self, items: Any, what: str, total: int | None = None) -> Any:
            for i in items:
                if i >= steps:
                    raise Stop
                yield i

    with contextlib.suppress(Stop):
        train(method, corpus, run, out, facts=facts or {}, progress=Counted(quiet=True))
    return method


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    run, corpus = Run(steps=6, batch=4, warmup=2, save_every=3), pixels()
    whole = run_to(tmp_path / "whole", 6, corpus, run)
    run_to(tmp_path / "parts", 4, corpus, run)  # stopped after step 4; the checkpoint holds step 3
    parts = run_to(tmp_path / "parts", 6, corpus, run)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_steps_on_one_batch_lower_its_loss() -> None:
    """The same views, the same fixed teacher and centre: gradient descent must bring the loss towards its floor."""
    method = DINO(TINY, SMALL, seed=0)
    views = method.views(pixels(8), torch.nn.Identity(), torch.Generator().manual_seed(1))
    centre = method.loss.center.clone()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(40):
        method.loss.center.copy_(centre)  # the loss moves it
        loss = method(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in (*method.teacher.parameters(), *method.teacher_head.parameters()))


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    method = DINO(TINY, dataclasses.replace(SMALL, momentum=0.9), seed=0)
    old = method.teacher.norm.bias.clone()
    with torch.no_grad():
        method.student.norm.bias.add_(1)
    method.after_step(0.0)
    assert torch.allclose(method.teacher.norm.bias, old + 0.1)
    method.after_step(1.0)  # the momentum has risen to 1
    assert torch.allclose(method.teacher.norm.bias, old + 0.1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    run, corpus = Run(steps=6, batch=4, warmup=1, save_every=2), pixels()
    run_to(tmp_path, 2, corpus, run)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    method = DINO(TINY, SMALL, seed=0)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["method"]["student.pos_embed"].fill_(float("nan"))
    torch.save(state, tmp_path / "checkpoint.pt")
    poisoned = (tmp_path / "checkpoint.pt").read_bytes()
    assert poisoned != good
    with pytest.raises(PretrainError, match="step 2 is nan"):
        train(method, corpus, run, tmp_path, facts={}, progress=RichProgress(quiet=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == poisoned


def test_another_run_does_not_resume_from_a_foreign_checkpoint(tmp_path: Path) -> None:
    run = Run(steps=2, batch=4, save_every=1)
    run_to(tmp_path, 1, pixels(), run)
    with pytest.raises(PretrainError, match="other options"):
        run_to(tmp_path, 2, pixels(), dataclasses.replace(run, lr=0.5))


def test_what_it_saves_loads_as_an_encoder_of_its_family(tmp_path: Path) -> None:
    from evalkit import adapters
    from evalkit.types import Manifest

    arch = ViTConfig(dim=192, depth=6, heads=3, patch=8, size=64)
    method = DINO(arch, dataclasses.replace(SMALL, hidden=512, bottleneck=128), seed=0)
    out = train(method, pixels(4, 64), Run(steps=1, batch=4), tmp_path, facts={}, progress=RichProgress(quiet=True))
    encoder = adapters.load(Manifest("mine", "dino", "vit_micro_patch8_64", file=str(out)), out)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = method.teacher.half().float()(images)
        (tokens,) = encoder.encode(images)
        bottleneck = encoder.project(tokens, at="bottleneck")
    assert torch.allclose(tokens.cls, expected[:, 0], atol=1e-5)
    assert bottleneck.shape == (2, 128)


def test_views_have_the_size_asked_for_stay_in_range_and_follow_the_generator() -> None:
    views = augment.Views(16, (0.25, 1.0), solarise_p=0.5)
    one, two, other = (augment.augment(pixels(), views, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (12, 3, 16, 16)
    assert one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_without_randomness_a_view_is_the_image_or_its_mirror() -> None:
    views = augment.Views(32, (1.0, 1.0), jitter_p=0, grey_p=0)
    images = pixels()
    rng = torch.Generator().manual_seed(0)
    # aspect is drawn too, so only a full square (clamped both ways) shows the whole image
    found = augment.jitter(images.float() / 255, views, rng)
    assert torch.allclose(found, images.float() / 255, atol=1e-5)


def test_grey_is_grey() -> None:
    views = augment.Views(32, (1.0, 1.0), jitter_p=0, grey_p=1)
    found = augment.jitter(pixels().float() / 255, views, torch.Generator().manual_seed(0))
    assert (found.amax(1) - found.amin(1)).max() < 2e-3


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            data = io.BytesIO()
            Image.new("RGB", (40, 30), (i * 10, 0, 0)).save(data, "PNG")
            archive.writestr(name, data.getvalue())
    return path


def test_packing_takes_only_the_members_asked_for(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", ["train/x.png", "train/y.png", "test/z.png"])
    images, digest = pack([f"{source}:train/*"], 16, tmp_path / "cache")
    assert images.shape == (2, 3, 16, 16)
    assert images[1, 0].unique().tolist() == [10]
    assert pack([f"{source}:train/*"], 16, tmp_path / "cache")[1] == digest
    assert pack([str(source)], 16, tmp_path / "cache")[1] != digest


@pytest.mark.parametrize("source", ["none.zip", "empty"])
def test_packing_nothing_says_what_is_missing(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainError, match=source):
        pack([str(tmp_path / source)], 16, tmp_path / "cache")
