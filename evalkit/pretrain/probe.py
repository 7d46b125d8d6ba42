"""The online probe: what the encoder is worth so far, by evalkit's own recipes on data that training does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.errors import EvalkitError, PretrainError
from evalkit.files import temporary_folder


@dataclass(frozen=True)
class RecipeProbe:
    """Measures an exported encoder with recipes. data_root: of their datasets, None for the shipped ones. limit: at most
    so many samples of each split. Features are kept nowhere: the next probe has another encoder."""

    recipes: tuple[str, ...]
    data_root: Path | None = None
    limit: int | None = None
    device: str = "auto"

    def check(self) -> None:
        """Raises UnknownName for a recipe that there is none of, before anything is trained."""
        from evalkit import catalog

        for recipe in self.recipes:
            catalog.recipe(recipe)

    def __call__(self, manifest: Path) -> dict[str, float]:
        """{recipe: its headline}. Raises PretrainError where a recipe cannot be measured."""
        from evalkit import catalog
        from evalkit.engine.evaluate import Options, Session, load

        with temporary_folder("probe") as cache:
            session = Session(Options(data_root=self.data_root, device=self.device, limit=self.limit, out=None,
                                      cache=cache))  # fmt: skip
            recipes = [catalog.recipe(name) for name in self.recipes]
            found = {}
            for recipe, outcome in zip(recipes, session.run(load(manifest), recipes, {}), strict=True):
                found[recipe.id] = _headline(recipe.headline, outcome.record, outcome.error)
        return found


def _headline(name: str, record: object, error: EvalkitError | None) -> float:
    if error is not None:
        raise PretrainError(f"the probe failed: {error}. Leave it out with --no-probe, or name another with --probe")
    scores: Sequence[dict[str, float | str]] = getattr(record, "scores", ())
    return next((float(score["value"]) for score in scores if score["name"] == name), float("nan"))
