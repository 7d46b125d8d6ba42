"""One battery for every dataset: what extraction may count on."""

from __future__ import annotations

import pickle
from itertools import groupby
from pathlib import Path

import pytest

from evalkit import datasets
from evalkit.errors import CatalogError, DatasetError
from evalkit.types import Dataset, DatasetRef, Role
from tests.contract.makers import DATASETS, Data, Exempt


def test_every_dataset_is_held_by_this_battery() -> None:
    assert set(DATASETS) == set(datasets.names()), "add the new dataset to tests/contract/makers.py"


@pytest.fixture(params=sorted(DATASETS))
def name(request: pytest.FixtureRequest) -> str:
    if isinstance(exempt := DATASETS[request.param], Exempt):
        pytest.skip(exempt.reason)
    return str(request.param)


@pytest.fixture
def data(name: str, tmp_path: Path) -> Data:
    make = DATASETS[name]
    assert not isinstance(make, Exempt)
    return make(tmp_path)


def opened(name: str, data: Data, role: Role = "train", **config: object) -> Dataset:
    ref = DatasetRef(name, name, data.train, data.test, config={**data.config, **config})
    return datasets.open_dataset(ref, role, data.root)


def test_samples_are_unique_labelled_and_consecutive_by_group(name: str, data: Data) -> None:
    for role in ("train", "test"):
        found = opened(name, data, role)  # type: ignore[arg-type]
        samples = [found[i] for i in range(len(found))]
        assert samples
        assert len({s.id for s in samples}) == len(samples)
        groups = [g for g, _ in groupby(s.group for s in samples)]
        assert len(groups) == len(set(groups))
        labels = {s.label for s in samples}
        assert labels == {-1} or labels <= set(range(len(found.classes)))  # -1: every pixel has its own


def test_images_are_rgb_and_boxes_have_an_area(name: str, data: Data) -> None:
    found = opened(name, data)
    sample = found[0]
    assert found.image(sample.group).mode == "RGB"
    if sample.box:
        x0, y0, x1, y1 = sample.box
        assert x1 > x0 and y1 > y0


def test_a_copy_that_went_through_pickle_gives_the_same(name: str, data: Data) -> None:
    found = opened(name, data)
    copy = pickle.loads(pickle.dumps(found))
    assert [copy[i] for i in range(len(copy))] == [found[i] for i in range(len(found))]
    assert copy.image(copy[0].group).tobytes() == found.image(found[0].group).tobytes()


def test_the_digest_is_stable_and_follows_the_images(name: str, data: Data) -> None:
    before = opened(name, data).digest
    assert len(before) == 64
    assert opened(name, data).digest == before
    assert opened(name, data, "test").digest != before
    if data.image is not None:
        content = bytearray(data.image.read_bytes())
        content[-40] ^= 1
        data.image.write_bytes(content)
        assert opened(name, data).digest != before


def test_it_describes_itself_in_plain_values(name: str, data: Data) -> None:
    import json

    assert json.loads(json.dumps(opened(name, data).describe()))


def test_whole_files_verify_and_missing_ones_are_told(name: str, data: Data, tmp_path: Path) -> None:
    if data.image is None:
        assert datasets.verify(name, data.root) == []
        return
    empty = tmp_path / "nothing here"
    empty.mkdir()
    assert datasets.verify(name, empty)
    with pytest.raises(DatasetError):
        opened(name, Data(empty, data.train, data.test, data.config))


def test_an_unknown_split_and_an_unknown_option_are_refused(name: str, data: Data) -> None:
    with pytest.raises(DatasetError):
        opened(name, Data(data.root, "no-such-split", data.test, data.config))
    with pytest.raises(CatalogError, match="no_such_option"):
        opened(name, data, no_such_option=1)
