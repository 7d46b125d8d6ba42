"""Weights load key by key, or not at all.

Every key of the file is used, or dropped by a rule that has a name and a reason; every parameter of the network gets
its value from the file; anything else is a KeyMismatch that lists what differs. Silent partial loading is the most
reported cause of wrong numbers (facebookresearch/dino issues 30, 65, 117, 217; dinov2 235, 321; vissl 545).

    network = unwrap(raw, ["teacher"])
    state = strip(network.state, "module.")
    audit = assign(vit, state, [Rule("classifier", "not evaluated", r"head[.].*")], what="vit_small_patch16")
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.mismatch import explain
from evalkit.errors import CheckpointError, KeyMismatch

State = dict[str, Tensor]

ABSURD = 1e30
"""No weight is larger: its square would leave float32."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """Keys that are left out on purpose. pattern: regular expression that the whole key has to match."""

    name: str
    reason: str
    pattern: str

    def covers(self, key: str) -> bool:
        """Whether the rule drops this key."""
        return re.fullmatch(self.pattern, key) is not None


@dataclass(frozen=True)
class Audit:
    """What loading did, or would have to do, with each key.

    used: keys taken. dropped: {name of the rule: keys}. missing: parameters that the file lacks. unexpected: keys
    that nothing uses. misshaped: {key: (shape in the file, shape expected)}. dtypes: {type in the file: keys used};
    the network itself is in float32.
    """

    used: tuple[str, ...]
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether the file and the network agree."""
        return not (self.missing or self.unexpected or self.misshaped)

    def facts(self) -> dict[str, Any]:
        """Plain values for a record: the number of keys used, their types in the file, and the keys dropped by rule."""
        return {
            "used": len(self.used),
            "dtypes": dict(self.dtypes),
            "dropped": {name: list(keys) for name, keys in self.dropped.items()},
        }


@dataclass(frozen=True)
class Network:
    """One network of a file. name: the entry that held it, "" where the file is the network itself. beside: the file's
    other entries (optimiser, epoch, other networks), which were not looked at."""

    state: State
    name: str
    beside: tuple[str, ...] = ()


def unwrap(raw: RawCheckpoint, wrappers: Sequence[str]) -> Network:
    """The network under the first of `wrappers` that the file has, or the file's own top level where it holds tensors.

    Raises CheckpointError where there are no weights in either place, or entries that are no tensors among them.
    """
    for name in wrappers:
        if isinstance(inner := raw.state.get(name), Mapping):
            beside = tuple(str(key) for key in raw.state if key != name)
            return Network(_tensors(inner, f"{raw.path}, entry {name!r},"), name, beside)
    if any(isinstance(value, Tensor) for value in raw.state.values()):
        return Network(_tensors(raw.state, str(raw.path)), "")
    raise CheckpointError(_no_weights(raw, wrappers))


def _no_weights(raw: RawCheckpoint, wrappers: Sequence[str]) -> str:
    entries = [f"{str(key)[:40]} ({type(value).__name__})" for key, value in raw.state.items()]
    text = f"{raw.path} has no weights at its top level or under {', '.join(map(repr, wrappers))}; it holds: "
    text += ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "") or "nothing"
    held = [str(key) for key, value in raw.state.items() if isinstance(value, Mapping) and _has_tensor(value)]
    if held:
        text += f". Hint: weights lie under {', '.join(map(repr, held[:4]))}; evalkit inspect {raw.path} says whose they are"
    return text


def _has_tensor(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _tensors(content: Mapping[str, Any], where: str) -> State:
    strange = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange or not content:
        listed = f"entries that are no tensors: {', '.join(strange[:6])}" if strange else "no entries"
        raise CheckpointError(f"{where} has {listed}; a network is a dictionary of tensors")
    return dict(content)


def strip(state: Mapping[str, Tensor], prefix: str) -> State:
    """The same tensors without `prefix` at the beginning of the keys, if every key has it; else as they are.

    Only the beginning counts: `blocks.0.module.x` keeps its `module.`.
    """
    if state and all(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)


def split(state: Mapping[str, Tensor], prefix: str) -> tuple[State, State]:
    """(those under `prefix`, without it; all the others)."""
    inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], rules: Sequence[Rule] = ()) -> Audit:
    """What the keys and shapes of `state` are to a network that has `expected`. Changes nothing, raises nothing."""
    dropped: dict[str, list[str]] = {}
    used, unexpected, misshaped = [], [], {}
    for key, value in state.items():
        rule = next((rule for rule in rules if rule.covers(key)), None)
        if rule and key not in expected:
            dropped.setdefault(rule.name, []).append(key)
        elif key not in expected:
            unexpected.append(key)
        elif value.shape != expected[key].shape:
            misshaped[key] = (tuple(value.shape), tuple(expected[key].shape))
        else:
            used.append(key)
    dtypes = Counter(str(state[key].dtype).removeprefix("torch.") for key in used)
    return Audit(
        used=tuple(used),
        dropped={name: tuple(keys) for name, keys in dropped.items()},
        missing=tuple(key for key in expected if key not in state),
        unexpected=tuple(unexpected),
        misshaped=misshaped,
        dtypes=dict(dtypes),
    )


def assign(module: nn.Module, state: Mapping[str, Tensor], drop_rules: Sequence[Rule] = (), *, what: str = "") -> Audit:
    """Copies `state` into `module`, every key of it; half precision becomes the module's float32. what: for messages.

    Raises KeyMismatch where keys or shapes differ, CheckpointError where a value is NaN or infinite, or an integer
    where a weight belongs. In either case the module is as it was.
    """
    target = module.state_dict(keep_vars=True)
    audit = compare(target, state, drop_rules)
    what = what or type(module).__name__
    if not audit.clean:
        raise KeyMismatch(explain(what, audit, target))
    _check_values(what, target, {key: state[key] for key in audit.used})
    with torch.no_grad():
        for key in audit.used:
            target[key].copy_(state[key])
    return audit


def _check_values(what: str, target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    kinds = [key for key, value in state.items() if value.is_floating_point() != target[key].is_floating_point()]
    if kinds:
        raise CheckpointError(f"{what}: {_some(kinds)} hold {state[kinds[0]].dtype}; quantised weights are not read")
    largest = {key: _largest(value) for key, value in state.items() if value.is_floating_point() and value.numel()}
    broken = [key for key, size in largest.items() if not math.isfinite(size)]
    if broken:
        raise CheckpointError(
            f"{what}: NaN or infinite values in {len(broken)} of {len(state)} weights: {_some(broken)}"
        )
    absurd = [key for key, size in largest.items() if size > ABSURD]
    if absurd:
        raise CheckpointError(f"{what}: values past {ABSURD:g} in {_some(absurd)}; no trained network has such weights")
    if largest and not any(largest.values()):
        raise CheckpointError(f"{what}: every weight in the file is 0: it holds no trained network")


def _largest(value: Tensor) -> float:
    """The largest magnitude; NaN where a value is NaN."""
    low, high = value.detach().aminmax()
    return float(torch.maximum(-low, high))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
