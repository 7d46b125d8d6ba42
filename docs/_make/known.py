"""The catalogue, read once: every recipe and every manifest."""

from __future__ import annotations

from functools import cache

from evalkit import catalog
from evalkit.types import Manifest, Recipe


@cache
def recipes() -> tuple[Recipe, ...]:
    """Every recipe, by id."""
    return tuple(map(catalog.recipe, catalog.recipes()))


@cache
def manifests() -> tuple[Manifest, ...]:
    """Every checkpoint of the zoo, by id."""
    return tuple(map(catalog.manifest, catalog.manifests()))
