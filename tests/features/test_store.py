"""The store: shards that show damage, atomic writes, a full disk, a read-only folder, listing, verifying, pruning."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from feature_fakes import VIEW, MeanColour, Photos

from evalkit import files
from evalkit.catalog import cache_root
from evalkit.errors import FeatureError, StoreError, UsageError
from evalkit.features import shards
from evalkit.features.extract import ExtractOptions, extract
from evalkit.features.key import Request
from evalkit.features.store import FeatureStore, default_budget
from evalkit.features.stored import Columns, Gathered, MappedShard, StoredFeatures, serialised


def fill(root: Path, images: int = 10, **options) -> FeatureStore:
    store = FeatureStore(root)
    asked = {"store": store, "batch_size": 2, "shard_rows": 4, "workers": 0} | options
    extract(MeanColour(), Photos(images), VIEW, Request(("cls", "patches")), options=ExtractOptions(**asked))
    return store


def shard_files(root: Path) -> list[Path]:
    return sorted(root.glob("??/*/shard-*"))


def test_every_flipped_byte_shows(tmp_path):
    fill(tmp_path, images=2)
    path = shard_files(tmp_path)[0]
    whole = path.read_bytes()
    shards.check(path)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(shards.Damaged):
            shards.check(path)


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_truncated_shard_shows(tmp_path, length):
    fill(tmp_path, images=2)
    path = shard_files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(shards.Damaged):
        shards.check(path)


def test_verify_names_every_problem(tmp_path):
    store = fill(tmp_path)
    assert store.verify() == []
    flipped, missing, foreign = shard_files(tmp_path)
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    missing.unlink()
    other = fill(tmp_path / "other", images=11)
    foreign.write_bytes(shard_files(other.root)[2].read_bytes())
    left = flipped.with_name(".shard-00000.safetensors.elsewhere.1.aa.tmp")
    left.touch()
    os.utime(left, (0, 0))
    problems = store.verify()
    assert [path.name in text for path, text in zip([flipped, missing, foreign, left], problems, strict=True)] == [
        True
    ] * 4
    for said, text in zip(["checksum", "missing", "another entry", "left behind"], problems, strict=True):
        assert said in text


def test_an_index_that_cannot_be_read_is_a_problem_and_is_made_again(tmp_path):
    store = fill(tmp_path)
    index = next(tmp_path.glob("??/*/index.json"))
    whole = index.read_bytes()
    index.write_text('{"format": 1}')
    assert "cannot be read" in store.verify()[0]
    assert not store.ls()[0].complete
    fill(tmp_path)
    assert index.read_bytes() == whole


def test_ls_tells_whose_entries_they_are(tmp_path):
    store = fill(tmp_path)
    fill(tmp_path, images=3)
    small, large = sorted(store.ls(), key=lambda entry: entry.n)
    assert (large.encoder, large.dataset, large.split, large.n, large.complete) == (
        "mean-colour",
        "photos",
        "train",
        10,
        True,
    )
    assert large.bytes == sum(path.stat().st_size for path in store.folder(large.key).iterdir())
    assert small.n == 3
    assert large.last_used[:2] == "20"


def test_an_empty_or_absent_store_lists_nothing(tmp_path):
    store = FeatureStore(tmp_path / "absent")
    assert (store.ls(), store.verify(), store.prune(max_bytes=0)) == ([], [], 0)
    assert not (tmp_path / "absent").exists()


def test_prune_takes_what_was_used_longest_ago(tmp_path):
    store = FeatureStore(tmp_path)
    for images, age in ((3, 5), (4, 3), (5, 1)):
        fill(tmp_path, images=images)
        newest = next(entry for entry in store.ls() if entry.n == images)
        os.utime(store.folder(newest.key) / "index.json", (time.time() - age * 86400,) * 2)
    sizes = {entry.n: entry.bytes for entry in store.ls()}
    assert store.prune(older_than=4) == sizes[3]
    assert store.prune(max_bytes=sizes[5]) == sizes[4]
    assert [entry.n for entry in store.ls()] == [5]
    assert store.prune(max_bytes=0) == sizes[5]
    assert store.verify() == []


def test_reading_counts_as_use(tmp_path):
    store = fill(tmp_path)
    index = next(tmp_path.glob("??/*/index.json"))
    os.utime(index, (1000, 1000))
    fill(tmp_path)
    assert store.ls()[0].used > 1000


def test_prune_removes_temporary_files_of_the_dead_only(tmp_path):
    store = fill(tmp_path)
    folder = shard_files(tmp_path)[0].parent
    ours, host = files.temporary(folder / "shard-00000.safetensors"), socket.gethostname()
    dead = folder / f".shard-00000.safetensors.{host}.{2**22 + 1}.bb.tmp"
    silent = folder / ".shard-00000.safetensors.elsewhere.1.cc.tmp"
    recent = folder / ".shard-00000.safetensors.elsewhere.1.dd.tmp"
    for path in (ours, dead, silent, recent):
        path.touch()
    os.utime(silent, (0, 0))
    store.prune()
    assert [path.exists() for path in (ours, dead, silent, recent)] == [True, False, False, True]
    assert store.ls()[0].n == 10


@pytest.mark.parametrize("limits", [{"older_than": -1}, {"max_bytes": -1}])
def test_prune_refuses_negative_limits(tmp_path, limits):
    with pytest.raises(UsageError):
        FeatureStore(tmp_path).prune(**limits)


def test_a_full_disk_keeps_the_shards_that_are_done(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 5:  # two per shard, file and folder: in the middle of the third
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match=r"disk is full.*EVALKIT_CACHE"):
        fill(tmp_path)
    assert [path.name for path in shard_files(tmp_path)] == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert not list(tmp_path.rglob(".*"))
    monkeypatch.undo()
    encoder = MeanColour()
    options = ExtractOptions(store=FeatureStore(tmp_path), batch_size=2, shard_rows=4)
    extract(encoder, Photos(10), VIEW, Request(("cls", "patches")), options=options)
    assert encoder.seen == 2


def deny(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """The folder as someone without the right to write sees it; a real one would not stop the root user."""
    real_open, real_access = Path.open, os.access

    def opened(self: Path, mode: str = "r", *args, **kwargs):
        if root in self.parents and set(mode) & set("wxa"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(self, mode, *args, **kwargs)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real_access(path, mode))


def test_a_read_only_store_is_read_and_refuses_new_work_before_computing(tmp_path, monkeypatch):
    fill(tmp_path)
    deny(monkeypatch, tmp_path)
    fill(tmp_path)
    encoder = MeanColour()
    options = ExtractOptions(store=FeatureStore(tmp_path))
    with pytest.raises(StoreError, match=r"read-only.*EVALKIT_CACHE=") as caught:
        extract(encoder, Photos(3), VIEW, Request(), options=options)
    assert str(tmp_path) in str(caught.value)
    assert encoder.seen == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="read-only"):
        fill(tmp_path)
    tmp_path.chmod(0o700)


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        fill(tmp_path / "file")


def test_grids_may_differ_from_row_to_row(tmp_path):
    grids = [(1, 2), (3, 1), (2, 2)]
    pieces = [
        {"patches.0": torch.randn(h * w, 5), "grids": torch.tensor([[h, w]], dtype=torch.int32)} for h, w in grids
    ]
    mapped = []
    gathered = Gathered(2)
    for piece in pieces[:2]:
        gathered.add(piece, 1)
    for number, rows in enumerate([gathered.rows(), pieces[2]]):
        held = len(rows["grids"])
        sealed, _ = shards.seal(serialised(rows, shards.Facts("k", number, 0, held, held)))
        shards.write(tmp_path / shards.name(number), sealed)
        assert shards.check(tmp_path / shards.name(number)).rows == held
        mapped.append(MappedShard(tmp_path / shards.name(number), held))
    stored = StoredFeatures(mapped, Columns.of(Photos(3)), [], Request(("patches",), (0,)), 1)
    for row, (grid, piece) in enumerate(zip(grids, pieces, strict=True)):
        assert torch.equal(stored.tokens(row), piece["patches.0"].view(*grid, 5))
    with pytest.raises(FeatureError, match="different grids"):
        stored.get("patches")
    with pytest.raises(IndexError):
        stored.tokens(3)


def test_the_default_place_and_budget(monkeypatch, tmp_path):
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    assert FeatureStore().root == tmp_path / "features"
    monkeypatch.delenv("EVALKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "evalkit"
    monkeypatch.setenv("EVALKIT_CACHE_GB", "0.5")
    assert default_budget() == 500_000_000
    monkeypatch.setenv("EVALKIT_CACHE_GB", "much")
    with pytest.raises(StoreError, match="EVALKIT_CACHE_GB"):
        default_budget()
