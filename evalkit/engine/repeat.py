"""A record's question asked again, from the record alone: weights, data and parameters as it names them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evalkit import catalog
from evalkit.engine.evaluate import Options, Session, load
from evalkit.errors import RecordError
from evalkit.files import temporary_folder
from evalkit.records import Record
from evalkit.types import Recipe
from evalkit.validation import parse

Row = tuple[str, float, float]


def again(record: Record) -> tuple[Record, list[Row]]:
    """The new record and (score, value then, value now) for each score.

    Features are made anew in a store of this call's own, so that nothing is taken from the first run. Raises RecordError
    where weights or data are no longer what they were, and the EvalkitError of whatever else is wrong.
    """
    try:
        return _again(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"the record lacks what repeating it needs ({type(error).__name__}: {error})") from None


def _again(record: Record) -> tuple[Record, list[Row]]:
    given, resolved = record.arguments["given"], record.arguments["resolved"]
    checkpoint, named = _weights(record)
    encoder = load(checkpoint, **named)
    spec = encoder.spec
    now = [spec.digest, spec.network, spec.seed, spec.family, spec.arch, spec.adapter_version]
    if now != list(record.identity["encoder"]):
        raise RecordError(f"{checkpoint} is now {now}; the record was made with {record.identity['encoder']}")
    recipe = parse(Recipe, {k: v for k, v in record.recipe.items() if k != "resolved"}, "the record's recipe")
    with temporary_folder("repeat") as folder:
        options = Options(
            data={record.data["folder"]: Path(record.data["path"])}, out=None, cache=folder,
            **{k: resolved[k] for k in ("device", "precision", "limit", "skip_broken", "seed")},
        )  # fmt: skip
        outcome = next(Session(options).run(encoder, [recipe], given))
    if outcome.record is None:
        raise outcome.error or RecordError("nothing was measured")
    _same_data(record, outcome.record)
    return outcome.record, _rows(record, outcome.record)


def _weights(record: Record) -> tuple[str, dict[str, Any]]:
    """What was loaded: a zoo id or manifest; or else the file, with what `load` must not find out a second time."""
    encoder, given = record.encoder, record.arguments["given"].get("checkpoint", "")
    if given.startswith(catalog.TWIN):
        return given, {k: record.arguments["given"].get(k) or "" for k in ("family", "arch", "network")}
    if given in catalog.manifests() or given.endswith(".toml"):
        return given, {"network": record.arguments["given"].get("network") or ""}
    file = encoder["audit"].get("file")
    if file is None:
        return encoder["id"], {}
    named: dict[str, Any] = {} if encoder["network"] == "backbone" else {"network": encoder["network"]}
    if asked := encoder["audit"].get("asked"):
        named = asked | {"grid": tuple(asked["grid"]) or None}
    return file, {"family": encoder["family"], "arch": encoder["arch"], **named}


def _same_data(old: Record, new: Record) -> None:
    for role, digest in old.identity["data"].items():
        if new.identity["data"][role] != digest:
            raise RecordError(
                f"{old.data['path']} ({role}): digest is {new.identity['data'][role]}, the record's was {digest}"
            )


def _rows(old: Record, new: Record) -> list[Row]:
    """A score that only one of the two has is NaN in the other."""
    then, now = ({s["name"]: float(s["value"]) for s in record.scores} for record in (old, new))
    return [(name, then.get(name, math.nan), now.get(name, math.nan)) for name in then | now]
