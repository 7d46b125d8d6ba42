"""Who is best among comparable records of one recipe, and who cannot be told apart from the best, or from a chosen one.

"Tied" is a paired bootstrap (`reporting.compare`) on the same test images that does not tell them apart (`Paired.apart`):
the 95 % interval of the difference holds 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from evalkit.errors import EvalkitError
from evalkit.metrics.intervals import FEWEST
from evalkit.records import Record
from evalkit.reporting import compare

Word = Literal["best", "tied", "apart", "untested", ""]
"""Against the reference: "best" is equal to it, "apart" is told apart from it; "" where there is no value, or no other."""


@dataclass(frozen=True)
class Standing:
    """difference: of the encoder minus the reference, in the score's unit, NaN where untested. p: of no difference. why:
    it could not be tested."""

    word: Word = ""
    difference: float = math.nan
    p: float = math.nan
    why: str = ""


def of(chosen: Mapping[str, Record], out: Path, *, score: str = "", best: str = "max") -> dict[str, Standing]:
    """Each against the best of the column. score: "" for the headline. best: "max" or "min"."""
    values = {who: value for who, record in chosen.items() if not math.isnan(value := _value(record, score))}
    if len(values) < 2:
        return dict.fromkeys(chosen, Standing())
    top = (max if best == "max" else min)(values.values())
    first = next(who for who, value in values.items() if value == top)
    return {who: Standing("best", 0.0) if value == top else _against(chosen[first], chosen[who], out, score)
            for who, value in values.items()} | {who: Standing() for who in chosen if who not in values}  # fmt: skip


def against(
    references: Mapping[str, str], chosen: Mapping[str, Record], out: Path, *, score: str = ""
) -> dict[str, Standing]:
    """Each against its own reference; "" where it has none, is its own, or one of the two has no value."""
    judged = {}
    for who, record in chosen.items():
        held = chosen.get(references.get(who, ""))
        known = held is not None and held is not record and not math.isnan(_value(held, score) + _value(record, score))
        judged[who] = _against(held, record, out, score) if held is not None and known else Standing()
    return judged


def _value(record: Record, score: str) -> float:
    found = record.score(score)
    return float(found["value"]) if found else math.nan


def _against(reference: Record, record: Record, out: Path, score: str) -> Standing:
    try:
        found = compare.difference(record, reference, out, score)
    except (EvalkitError, SafetensorError, ValueError) as error:
        return Standing("untested", why=str(error))
    paired = found.difference
    if paired.apart is None:
        return Standing("untested", why=f"{found.units} to resample are too few, {FEWEST} are the fewest")
    return Standing("apart" if paired.apart else "tied", paired.difference, paired.p)
