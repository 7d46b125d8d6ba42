"""Keys: every field counts, equal requests share a key, prose does not count."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from feature_fakes import VIEW, Photos, spec

from evalkit.errors import UsageError
from evalkit.features.key import Key, Request, key_of, samples_digest
from evalkit.types import Preprocessing, View

OTHER = {
    "weights": "e" * 64, "network": "student", "seed": 7, "family": "x", "arch": "x", "adapter_version": 2,
    "shape": (4, 4, 1, 8), "preprocessing": (32, (0.0,) * 3, (1.0,) * 3), "dataset": "x", "split": "test",
    "samples": "x", "view": replace(VIEW, interpolation="bilinear"), "parts": ("mean",), "blocks": (2,),
    "norm": (False,), "precision": "bf16", "dtypes": (("cls", "float16"),), "view_seed": 0, "format": 99,
}  # fmt: skip


def key(request: Request | None = None, **changes) -> Key:
    dataset = Photos()
    order = [(sample.id, sample.group, sample.box) for sample in (dataset[i] for i in range(len(dataset)))]
    return key_of(
        spec(**changes), dataset, VIEW, request=request or Request(), samples=samples_digest(order), precision="fp32",
        patches="float16",
    )  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Key)])
def test_every_field_changes_the_key(name):
    assert replace(key(), **{name: OTHER[name]}).digest != key().digest


@pytest.mark.parametrize(
    "change", [{"digest": "0" * 64}, {"seed": 1}, {"network": "t"}, {"adapter_version": 5}, {"dim": 9}]
)
def test_the_encoder_changes_the_key(change):
    assert key(**change).digest != key().digest


def test_names_and_sources_do_not():
    prose = Preprocessing(size=16, source="somewhere")
    assert key(id="another", preprocessing=prose).digest == key().digest


def test_a_border_that_is_not_black_changes_the_key():
    assert replace(key(), view=replace(VIEW, border="edge")).digest != key().digest


def test_features_stored_before_views_had_a_border_are_still_found():
    tail = {"weights": "w", "network": "n", "seed": None, "family": "f", "arch": "a", "adapter_version": 1}
    stored = Key(
        **tail, shape=(1, 2, 3, 4), preprocessing=(1,), dataset="d", split="s", samples="x", view=View(224, 256),
        parts=("cls",), blocks=(11,), norm=(True,), precision="fp32", dtypes=(("cls", "float32"),),
    )  # fmt: skip
    assert stored.digest == "7526a2ec550520e15070af88ce0239df2b2f4d1d643a093646d3d68decf47847"


def test_equal_requests_share_a_key():
    one = Request(("patches", "cls"), (-1, 0), (True, False))
    two = Request(("cls", "patches", "cls"), (0, 3), (False, True))
    assert key(one).digest == key(two).digest


def test_the_digest_is_of_canonical_text_and_stable():
    assert key().digest == key().digest
    assert len(key().digest) == 64
    assert '"adapter_version":1' in key().canonical()


def test_order_and_subset_of_samples_change_their_digest():
    rows = [("a", "g", None), ("b", "g", (0, 0, 1, 1))]
    digests = {samples_digest(r) for r in (rows, rows[::-1], rows[:1], [rows[0], ("b", "g", None)], [("a", "h", None)])}
    assert len(digests) == 5


def test_blocks_the_depth_does_not_hold_stay():
    assert Request(blocks=(11, -1)).resolved(1).blocks == (0, 11)


@pytest.mark.parametrize(
    "request_",
    [Request(()), Request(("cls", "head")), Request(blocks=()), Request(blocks=(0, 1), norm=(True,)),
     Request(blocks=(3, -1), norm=(True, False))],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused(request_):
    with pytest.raises(UsageError):
        request_.resolved(4)
