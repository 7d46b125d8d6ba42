"""Which controls stand beside the encoders of a command: an untrained twin for each network, and `pixels`.

A score says something of training only where it beats the same network untrained, and something of a network only where it
beats plain pixels. Encoders of one network share a twin, and its records are found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from evalkit import catalog
from evalkit.adapters import twins
from evalkit.types import Encoder, Recipe

PIXELS = "pixels"


@dataclass
class Control:
    """checkpoint: as for `load`. of: ids of the encoders whose twin it is, none for `pixels`. recipes: to measure."""

    checkpoint: str
    of: list[str] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def add(self, recipes: Sequence[Recipe], encoder: str = "") -> None:
        """One more encoder beside which it stands."""
        self.of += [encoder] if encoder else []
        self.recipes |= {recipe.id: recipe for recipe in recipes}


class Beside:
    """Collects what the encoders of a command ask for; what is measured anyway is not asked for again."""

    def __init__(self) -> None:
        self._measured: set[str] = set()
        self._wanted: dict[str, Control] = {}
        self.without: list[str] = []

    def saw(self, encoder: Encoder, checkpoint: str, recipes: Sequence[Recipe]) -> None:
        """An encoder that is measured with these recipes."""
        spec = encoder.spec
        self._measured.add(spec.id)
        if spec.network == "untrained" or spec.id == PIXELS:
            return
        self._wanted.setdefault(PIXELS, Control(PIXELS)).add(recipes)
        if not (name := twins.name(spec)) or not hasattr(encoder, "untrained"):
            self.without.append(spec.id)
            return
        self._wanted.setdefault(name, Control(catalog.TWIN + checkpoint)).add(recipes, spec.id)

    def missing(self) -> dict[str, Control]:
        """By id: what is still to be measured, twins first."""
        left = {name: control for name, control in self._wanted.items() if name not in self._measured}
        return dict(sorted(left.items(), key=lambda item: item[0] == PIXELS))

    def said(self) -> Iterator[str]:
        """What is added and why, in lines."""
        names = [
            f"{name} (untrained twin of {', '.join(control.of)})" if control.of else name
            for name, control in self.missing().items()
        ]
        if names:
            yield (
                f"controls beside them: {', '.join(names)}; a score that does not beat them means nothing. "
                "--no-controls leaves them out"
            )
        if self.without:
            yield f"no untrained twin is known of: {', '.join(self.without)}"
