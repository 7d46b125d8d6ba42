"""Extraction: right values, one decoding per image, resuming, damage, broken images, NaN, budgets."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from feature_fakes import DEPTH, SIZE, VIEW, MeanColour, Photos, Refuses, spec

from evalkit.errors import BrokenImage, DatasetError, FeatureError, MissingFiles, Unsupported, UsageError
from evalkit.features import decoding
from evalkit.features import view as views
from evalkit.features.extract import ExtractOptions, RecomputedFeatures, extract, resolve_precision
from evalkit.features.forward import Forward, pipelined
from evalkit.features.key import Request
from evalkit.features.store import FeatureStore
from evalkit.types import Tokens

ALL = Request(("cls", "mean", "patches"), (0, -1))


def options(root: Path | None = None, **changes) -> ExtractOptions:
    store = None if root is None else FeatureStore(root)
    return replace(ExtractOptions(store=store, batch_size=3, shard_rows=8, workers=0), **changes)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def expected(dataset: Photos) -> torch.Tensor:
    pixels = [views.apply(dataset.image(dataset[i].group), dataset[i].box, VIEW) for i in range(len(dataset))]
    return views.normalise(torch.stack(pixels), VIEW)


@pytest.mark.parametrize("place", ["stored", "in memory", "recomputed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_values_parts_blocks_and_columns(tmp_path, place, workers):
    dataset = Photos(10, boxes=2, box=(0.0, 0.0, SIZE, SIZE))
    store = {"stored": FeatureStore(tmp_path), "in memory": None, "recomputed": FeatureStore(tmp_path, budget=1)}[place]
    found = extract(MeanColour(), dataset, VIEW, ALL, options=options(workers=workers, store=store))
    images = expected(dataset)
    patches = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
    assert torch.allclose(found.get("cls", -1), images.mean((2, 3)) + 103, atol=1e-4)
    assert torch.allclose(found.get("cls", 0), images.mean((2, 3)) + 100, atol=1e-4)
    assert torch.allclose(found.get("mean", 3), images.mean((2, 3)) + 103, atol=1e-4)
    assert found.get("mean").dtype == torch.float32
    assert found.get("patches").dtype == torch.float16
    assert torch.equal(found.get("patches"), (patches + 103).half())
    assert max(len(piece) for piece in found.batches("cls", size=2)) == 2
    assert torch.equal(torch.cat(list(found.batches("patches", size=5))), found.get("patches"))
    assert len(found) == 20
    assert found.labels.tolist() == [i // 2 % 2 for i in range(20)]
    assert found.groups.tolist() == [i // 2 for i in range(20)]
    assert list(found.ids) == [f"sample-{i}" for i in range(20)]
    assert list(found.skipped) == []
    for part, block in (("cls", 1), ("nothing", 0)):
        with pytest.raises(FeatureError, match="hold parts cls, mean, patches of blocks 0, 3"):
            found.get(part, block)
    with pytest.raises(FeatureError, match="at least 1"):
        found.batches("cls", size=0)


def test_one_norm_flag_per_block():
    found = extract(MeanColour(), Photos(3), VIEW, Request(("cls",), (1, 0), (False, True)), options=options())
    assert torch.allclose(found.get("cls", 1) + 99, found.get("cls", 0), atol=1e-4)


def test_patches_in_full_precision_where_asked(tmp_path):
    found = extract(MeanColour(), Photos(3), VIEW, ALL, options=options(tmp_path, patches_dtype="float32"))
    assert found.get("patches").dtype == torch.float32


def test_rows_kept_in_memory_can_train():
    found = extract(MeanColour(), Photos(3), VIEW, Request(), options=options())
    weight = torch.zeros(3, requires_grad=True)
    (found.get("cls") @ weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_for_all_its_boxes(tmp_path, workers):
    dataset = Photos(12, boxes=5, opened=tmp_path)
    extract(MeanColour(), dataset, VIEW, ALL, options=options(workers=workers, batch_size=8, shard_rows=16))
    assert dataset.decodings() == sorted(f"image-{i}" for i in range(12))


def test_a_complete_entry_needs_neither_encoder_nor_images(tmp_path, monkeypatch):
    first = extract(MeanColour(), Photos(30), VIEW, ALL, options=options(tmp_path / "store"))
    monkeypatch.setattr(decoding, "run", None)
    (tmp_path / "opened").mkdir()
    again = extract(Refuses(), Photos(30, opened=tmp_path / "opened"), VIEW, ALL, options=options(tmp_path / "store"))
    assert torch.equal(first.get("cls"), again.get("cls"))
    assert not any((tmp_path / "opened").iterdir())


class Dies(MeanColour):
    """Ends its process as a power cut would, after some images."""

    limit = 17

    def encode(self, *arguments, **named):
        if self.seen >= self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(*arguments, **named)


def start(root: Path, encoder: MeanColour) -> multiprocessing.process.BaseProcess:
    """The extraction in a process of its own."""

    def run() -> None:
        torch.set_num_threads(1)
        extract(encoder, Photos(30), VIEW, ALL, options=options(root))

    process = multiprocessing.get_context("fork").Process(target=run)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join()
    return process.exitcode


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    assert ended(start(tmp_path / "killed", Dies())) == -signal.SIGKILL
    finished = sorted(path.name for path in (tmp_path / "killed").rglob("shard-*"))
    assert finished == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert not FeatureStore(tmp_path / "killed").ls()[0].complete
    assert FeatureStore(tmp_path / "killed").verify() == []
    encoder = MeanColour()
    resumed = extract(encoder, Photos(30), VIEW, ALL, options=options(tmp_path / "killed"))
    assert encoder.seen == 30 - 16
    whole = extract(MeanColour(), Photos(30), VIEW, ALL, options=options(tmp_path / "whole", workers=2))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert torch.equal(resumed.get("patches", 0), whole.get("patches", 0))


def test_two_processes_share_a_store(tmp_path):
    both = [start(tmp_path / "two", MeanColour()) for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    extract(Refuses(), Photos(30), VIEW, ALL, options=options(tmp_path / "two"))
    extract(MeanColour(), Photos(30), VIEW, ALL, options=options(tmp_path / "one"))
    assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "other span"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path, harm, caplog):
    extract(MeanColour(), Photos(30), VIEW, ALL, options=options(tmp_path))
    before = content(tmp_path)
    first, second = sorted(tmp_path.rglob("shard-*"))[:2]
    data = bytearray(second.read_bytes())
    data[-5] ^= 64
    new = {"flip": data, "truncate": data[:-30], "remove": b"", "other span": first.read_bytes()}[harm]
    second.write_bytes(new) if new else second.unlink()
    encoder = MeanColour()
    with caplog.at_level(logging.WARNING):
        extract(encoder, Photos(30), VIEW, ALL, options=options(tmp_path))
    assert second.name in caplog.text
    assert encoder.seen == 8
    assert content(tmp_path) == before


def test_an_interrupted_run_keeps_finished_shards(tmp_path):
    class Interrupted(MeanColour):
        def encode(self, *arguments, **named):
            if self.seen >= 9:
                raise KeyboardInterrupt
            return super().encode(*arguments, **named)

    with pytest.raises(KeyboardInterrupt):
        extract(Interrupted(), Photos(30), VIEW, ALL, options=options(tmp_path, workers=2))
    assert len(list(tmp_path.rglob("shard-*"))) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_one_error_that_names_them(tmp_path, workers):
    dataset = Photos(30, boxes=2, broken=frozenset({10, 11}))
    with pytest.raises(BrokenImage, match=r"2 image.*image-10.jpg is cut short; image-11.*--skip-broken"):
        extract(MeanColour(), dataset, VIEW, ALL, options=options(tmp_path, workers=workers, batch_size=4))
    assert len(list(tmp_path.rglob("shard-*"))) == 2


@pytest.mark.parametrize("place", ["stored", "in memory", "recomputed"])
def test_skipped_images_are_recorded_and_absent(tmp_path, place):
    dataset = Photos(30, boxes=2, broken=frozenset({0, 11, 4, 5, 6, 7}))  # a whole shard of 8 samples among them
    store = {"stored": FeatureStore(tmp_path), "in memory": None, "recomputed": FeatureStore(tmp_path, budget=1)}[place]
    for encoder in (MeanColour(), Refuses() if place == "stored" else MeanColour()):
        found = extract(encoder, dataset, VIEW, ALL, options=options(store=store, skip_broken=True))
        gone = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 22, 23]
        kept = [i for i in range(60) if i not in gone]
        assert list(found.skipped) == [f"sample-{i}" for i in gone]
        assert list(found.ids) == [f"sample-{i}" for i in kept]
        assert found.labels.tolist() == [i // 2 % 2 for i in kept]
        assert found.groups.tolist() == [i // 2 for i in kept]
        whole = extract(MeanColour(), Photos(30, boxes=2), VIEW, ALL, options=options())
        assert torch.allclose(found.get("cls"), whole.get("cls")[kept])
        assert torch.equal(found.get("patches"), whole.get("patches")[kept])


def test_a_stored_skip_is_still_refused_by_default(tmp_path):
    dataset = Photos(30, broken=frozenset({3}))
    extract(MeanColour(), dataset, VIEW, ALL, options=options(tmp_path, skip_broken=True))
    with pytest.raises(BrokenImage, match=r"image-3.*--skip-broken"):
        extract(Refuses(), dataset, VIEW, ALL, options=options(tmp_path))


def test_nothing_that_can_be_decoded_is_an_error(tmp_path):
    with pytest.raises(BrokenImage, match="no image"):
        extract(
            MeanColour(), Photos(2, broken=frozenset({0, 1})), VIEW, ALL, options=options(tmp_path, skip_broken=True)
        )


@pytest.mark.parametrize("part", ["cls", "mean", "patches"])
def test_features_that_are_not_finite_name_the_sample(tmp_path, part):
    class Poisoned(MeanColour):
        def encode(self, *arguments, **named):
            answers = super().encode(*arguments, **named)
            if self.seen == 12:  # samples 9 to 11 at batches of 3 within shards of 8: 0-2 3-5 6-7 8-10 11-13
                raise AssertionError
            if self.seen == 11:
                (answers[1].cls if part == "cls" else answers[1].patches[:, 1, 0])[1] = float("nan")
            return answers

    with pytest.raises(FeatureError, match=rf"'sample-9', part '{part}', block 3"):
        extract(Poisoned(), Photos(30), VIEW, Request((part,), (0, -1)), options=options(tmp_path))
    assert len(list(tmp_path.rglob("shard-*"))) == 1


def test_patch_tokens_too_large_for_half_precision_are_not_stored(tmp_path):
    class Large(MeanColour):
        def encode(self, images, blocks=(-1,), norm=True):
            return super().encode(images * 1e6, blocks, norm)

    with pytest.raises(FeatureError, match="float32"):
        extract(Large(), Photos(3), VIEW, Request(("patches",)), options=options(tmp_path))


def test_no_class_token_is_unsupported():
    with pytest.raises(Unsupported, match="no class token"):
        extract(MeanColour(has_cls=False), Photos(3), VIEW, Request(("cls",)), options=options())
    extract(MeanColour(has_cls=False), Photos(3), VIEW, Request(("mean",)), options=options())


def test_a_spec_that_disagrees_with_its_tokens_is_refused():
    with pytest.raises(FeatureError, match="spec says"):
        extract(MeanColour(spec(dim=5)), Photos(3), VIEW, Request(), options=options())


def test_a_dataset_without_samples_is_refused(tmp_path):
    with pytest.raises(FeatureError, match="no samples"):
        extract(MeanColour(), Photos(0), VIEW, ALL, options=options(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_of_a_dataset_keep_their_class_and_message(workers):
    class Lacking(Photos):
        def image(self, group):
            raise MissingFiles("photos/7.jpg is absent")

    with pytest.raises(DatasetError, match=r"^photos/7.jpg is absent$") as caught:
        extract(MeanColour(), Lacking(30), VIEW, ALL, options=options(workers=workers))
    assert type(caught.value) is MissingFiles


def test_a_dead_worker_is_explained():
    class Deadly(Photos):
        def image(self, group):
            os._exit(1)

    with pytest.raises(FeatureError, match="decoding process died"):
        extract(MeanColour(), Deadly(30), VIEW, ALL, options=options(workers=1))


def test_above_the_budget_nothing_is_stored(tmp_path):
    encoder = MeanColour()
    found = extract(encoder, Photos(30), VIEW, ALL, options=options(store=FeatureStore(tmp_path, budget=100)))
    assert isinstance(found, RecomputedFeatures)
    assert encoder.seen == 0
    found.get("cls")
    assert encoder.seen == 30
    assert not any(tmp_path.iterdir())


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    extract(MeanColour(), Photos(30), VIEW, ALL, options=options(workers=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_use_one_thread():
    class Tells(Photos):
        def image(self, group):
            raise MissingFiles(f"{torch.get_num_threads()} thread")

    with pytest.raises(MissingFiles, match=r"^1 thread"):
        extract(MeanColour(), Tells(30), VIEW, ALL, options=options(workers=1))


def test_progress_is_told_of_every_batch():
    class Counts:
        told: tuple = ()

        def track(self, steps, what, total=None):
            for done, step in enumerate(steps, 1):
                self.told = (what, done, total)
                yield step

    counts = Counts()
    extract(MeanColour(), Photos(30), VIEW, ALL, options=options(progress=counts))
    assert counts.told == ("features of photos (train) by mean-colour", 11, 11)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}, {"shard_rows": 0}])
def test_options_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        options(**wrong)


def test_precision():
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    with pytest.raises(UsageError):
        resolve_precision("fp8", "cpu")
    half = extract(MeanColour(), Photos(3), VIEW, ALL, options=options(precision="bf16"))
    assert half.get("cls").dtype == torch.float32


def test_units_end_where_an_image_ends():
    groups = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]
    assert list(decoding.units([(0, 5)], groups, 2)) == [[0, 1, 2], [3, 4]]
    assert list(decoding.units([(5, 20)], groups, 1)) == [list(range(5, 13)), list(range(13, 19)), [19]]


class Views(MeanColour):
    """Class token and patches are views of one tensor of all tokens, as every vision transformer's are."""

    def encode(self, images, blocks=(-1,), norm=True):
        found = []
        for tokens in super().encode(images, blocks, norm):
            every = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], 1)
            found.append(Tokens(every[:, 0], every[:, 1:].unflatten(1, tokens.patches.shape[1:3])))
        return tuple(found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_hold_no_memory_but_their_own(dtype):
    """Else a shard of class tokens holds every token of its batches until it is written."""
    request = Request(("cls", "mean", "patches"), (0, -1)).resolved(DEPTH)
    forward = Forward(Views(), VIEW, request, torch.device("cpu"), "fp32", dtype)
    images = torch.randint(0, 256, (5, 3, VIEW.size, VIEW.size), dtype=torch.uint8)
    ((_, rows),) = pipelined(forward, [SimpleNamespace(images=images)])
    assert len(rows) == 7
    for name, values in rows.items():
        assert values.untyped_storage().nbytes() == (values.nbytes if name != "grids" else 8), name


class Nothing(MeanColour):
    """Patches are colours, the class token is 0: as of a network whose last norm has no gain."""

    def encode(self, images, blocks=(-1,), norm=True):
        return tuple(replace(tokens, cls=tokens.cls * 0) for tokens in super().encode(images, blocks, norm))


@pytest.mark.parametrize("place", ["stored", "in memory", "recomputed"])
def test_features_of_length_0_are_refused_and_not_stored(tmp_path, place):
    store = {"stored": FeatureStore(tmp_path), "in memory": None, "recomputed": FeatureStore(tmp_path, budget=1)}[place]
    with pytest.raises(FeatureError, match=r"mean-colour gave features of length 0 .*part 'cls', block 3"):
        list(
            extract(Nothing(), Photos(5), VIEW, Request(("cls", "mean")), options=options(store=store)).batches(
                "cls", size=2
            )
        )
    assert not list(tmp_path.rglob("*.safetensors"))
    assert len(extract(Nothing(), Photos(5), VIEW, Request(("mean",)), options=options())) == 5
