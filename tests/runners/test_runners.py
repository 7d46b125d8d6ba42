"""Finding runners by name and reading their options strictly."""

from __future__ import annotations

import dataclasses

import pytest

from evalkit import runners
from evalkit.errors import CatalogError, UnknownName


def test_runners_are_found_by_their_file():
    assert {"knn", "linear"} <= set(runners.names())
    for name in runners.names():
        module = runners.module(name)
        assert callable(module.run)
        assert dataclasses.is_dataclass(module.Config)
        assert module.Config.__dataclass_params__.frozen
        assert runners.configure(name, {}) == module.Config()


def test_an_unknown_runner_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean linear"):
        runners.module("linar")
    with pytest.raises(UnknownName, match="runner"):
        runners.configure("os", {})


def test_lists_become_tuples_and_whole_numbers_floats():
    config = runners.configure("knn", {"ks": [1, 5], "temperature": 1, "pooling": ["mean"]})
    assert config == runners.module("knn").Config(ks=(1, 5), temperature=1.0, pooling=("mean",))


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"kss": [1]}, ["kss", "ks", "temperature", "pooling"]),
        ({"ks": "10"}, ["ks", "'10'"]),
        ({"ks": [1.5]}, ["ks", "1.5"]),
        ({"ks": ["3"]}, ["ks", "'3'"]),
        ({"ks": [True]}, ["ks", "True"]),
        ({"temperature": "warm"}, ["temperature", "'warm'"]),
        ({"pooling": ["max"]}, ["pooling", "max", "cls+mean"]),
        ({"ks": []}, ["ks"]),
        ({"temperature": -1}, ["temperature", "-1"]),
    ],
)
def test_a_wrong_option_is_named_with_what_came_and_what_is_allowed(mapping, words):
    with pytest.raises(CatalogError) as caught:
        runners.configure("knn", mapping)
    assert str(caught.value).startswith("runner knn:")
    assert all(word in str(caught.value) for word in words)
