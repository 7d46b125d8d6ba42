"""Networks as training frameworks wrap them: taken out of their wrapping by rules that have names, or left alone.

What:   a network lies where a key ends in `patch_embed.proj.weight`; what stands before that is its wrapping. Wrapping is taken
        off where each word of it is known: DataParallel's `module.`, torch.compile's `_orig_mod.`, the attribute under
        which a training class keeps its encoder (`model.`, `backbone.` ...), and words that say which of two networks it
        is: `student*`, `online*` (trained by gradients), `teacher*`, `momentum*` (their average).
        Keys beside the network are dropped by a rule with a name, or the file is refused.
Where:  files are read as their family's own code writes them first; only what does not fit so is looked at here.
Source: names of attributes: lightly 1.5 (benchmarks: `backbone`, `student_backbone`, `teacher_backbone`, `projection_head`),
        solo-learn 1.0.6 (`backbone`, `momentum_backbone`, `projector`, `classifier`), Lightning's `state_dict`,
        torch.compile (`OptimizedModule._orig_mod`), torch.nn.DataParallel (`module`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from evalkit.adapters.files import RawCheckpoint
from evalkit.adapters.loading import Rule, State
from evalkit.errors import CheckpointError

MARK = "patch_embed.proj.weight"
"""Ends the name of one weight of every vision transformer that evalkit reads."""

INSIDE = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""{a word that torch puts into keys wherever it wraps a part of a network, and that no weight is called: the rule}."""
_INSIDE = re.compile(rf"(?:^|(?<=\.))({'|'.join(INSIDE)})\.")

DEEPEST = 3
"""Dictionaries inside dictionaries in which a network is looked for."""

MOST = 64
"""Networks in one file."""

Role = Literal["", "trained", "average"]
"""Which of two networks one is; "" where its name does not say."""

_KINDS = r"(_(backbone|encoder|model|network|net|vit|trunk))?"
WORDS: tuple[tuple[str, str, Role], ...] = (
    (r"module", "DataParallel", ""),
    (r"state_dict", "Lightning's entry", ""),
    (r"(base_)?model|backbone|encoder|net|network|vit|trunk|feature_extractor", "attribute of the training class", ""),
    (rf"(student|online){_KINDS}", "the network trained by gradients", "trained"),
    (
        rf"(teacher|momentum|ema){_KINDS}|(backbone|encoder|model)_(momentum|ema)",
        "the average of the other network",
        "average",
    ),
)
"""(a word before a network's keys, the rule that takes it off, what it says of the network)."""

BESIDE = (
    Rule(
        "classifier",
        "trained with labels beside the network",
        r"(\w+_)?(classifier|fc|linear|probe|head)(_momentum)?\.(weight|bias)",
    ),
    Rule(
        "projector",
        "maps features for the loss of another framework, whose heads are not read",
        r"(\w+_)?(head|projector|predictor|prototypes?)(_momentum)?(\.\w+)+",
    ),
    Rule("state of the loss", "no part of a network", r"(\w+_)?(criterion|loss|center|queue)(_(func|ptr|y))?(\.\w+)*"),
)
"""Keys that lie beside a network, after what wraps them is taken off."""

OTHER = "another network of the file"


class Ambiguous(CheckpointError):
    """Several networks of a file could be meant."""


@dataclass(frozen=True)
class Wrapped:
    """One network of a file. path: its keys began with it. words: {rule: keys that it was taken off of}. dropped: {rule:
    keys beside the network}. unexpected: keys beside it that no rule covers."""

    role: Role
    path: str
    state: State
    words: Mapping[str, int]
    dropped: Mapping[str, tuple[str, ...]]
    unexpected: tuple[str, ...]


def uncompiled(raw: RawCheckpoint) -> tuple[RawCheckpoint, dict[str, int]]:
    """The file without the words of `INSIDE` in its keys, and {rule: keys that had one}; a dictionary in which two keys would
    meet stays as it was."""
    count = Counter[str]()

    def cleaned(content: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        had = Counter[str]()
        for key, value in content.items():
            words = set(_INSIDE.findall(key)) if isinstance(key, str) else set()
            had.update(INSIDE[word] for word in words)
            inner = isinstance(value, Mapping) and depth < DEEPEST
            found[_INSIDE.sub("", key) if words else key] = cleaned(value, depth + 1) if inner else value
        if len(found) < len(content):
            return dict(content)
        count.update(had)
        return found

    state = cleaned(raw.state, 1)
    return (replace(raw, state=state), dict(count)) if count.total() else (raw, {})


def networks(raw: RawCheckpoint) -> dict[str, Role | None]:
    """{path: role} of every network in a file, "" for keys without a wrapping; None where a word of the path is not known.

    Raises CheckpointError where there are more than MOST.
    """
    return {path: _role(path) for path in _paths(raw, dict(_tensors(raw.state)))}


def around(raw: RawCheckpoint, weight: Tensor, keys: int) -> dict[str, int]:
    """{rule: keys} for the words before the network that this weight is the MARK of, where they are known."""
    held = ((name, value) for name, value in _tensors(raw.state) if name.endswith(MARK))
    path = next((name.removesuffix(MARK) for name, value in held if value is weight), "")
    return dict.fromkeys((known[0] for word in _words(path) if (known := _known(word))), keys)


def unwrap(raw: RawCheckpoint, prefix: str = "") -> list[Wrapped]:
    """The networks of a file out of their wrapping, the average first; none where the file has none.

    prefix: the path of the one that is meant, the last words of it where that is enough.
    Raises Ambiguous where a word of a wrapping is not known, or two networks have the same part; CheckpointError where
    nothing, or several things, lie under `prefix`.
    """
    flat = dict(_tensors(raw.state))
    paths = _paths(raw, flat)
    if prefix:
        return [_taken(flat, _meant(raw, paths, prefix), paths, "")]
    said = {path: _role(path) for path in paths}
    if None in said.values():  # another family's own names, or a person's
        raise Ambiguous(_strange(raw, paths))
    roles: dict[str, Role] = {path: role or "" for path, role in said.items()}
    if "average" in roles.values():  # the one whose name says nothing is what the average is of
        roles = {path: role or "trained" for path, role in roles.items()}
    counted = Counter(roles.values())
    if doubled := [path for path, role in roles.items() if counted[role] > 1]:
        raise Ambiguous(_ambiguous(raw, doubled))
    return [_taken(flat, path, paths, role) for path, role in sorted(roles.items(), key=lambda item: item[1] or "b")]


def check_single(raw: RawCheckpoint, named: frozenset[str]) -> None:
    """Raises Ambiguous where several entries of the file hold a network and nothing says which counts.

    named: entries that the family's own files give a meaning.
    """
    roles = {path: role for path, role in networks(raw).items() if role in ("", None)}
    entries = {_entry(raw, path) for path in roles}
    if len(entries) > 1 and not entries <= named:
        told = _strange if None in roles.values() else _ambiguous
        raise Ambiguous(told(raw, [f"{entry}." if entry else "" for entry in sorted(entries)]))


def _entry(raw: RawCheckpoint, path: str) -> str:
    """The file's entry that holds a network, "" for its top level."""
    word = path.partition(".")[0]
    return word if isinstance(raw.state.get(word), Mapping) else ""


def _ambiguous(raw: RawCheckpoint, paths: list[str]) -> str:
    listed = " and ".join(repr(path[:80]) if path else "its top level" for path in paths[:6])
    return (
        f"{raw.path} holds networks under {listed} and does not say which of them counts: "
        f"choose one with --prefix, for instance evalkit inspect {raw.path} --prefix {_first(paths)}"
    )


def _strange(raw: RawCheckpoint, paths: list[str]) -> str:
    listed = " and ".join(repr(path[:80]) if path else "its top level" for path in paths[:6])
    return (
        f"{raw.path} holds a network under {listed}, a name that this family's files do not have and no rule takes off. "
        f"evalkit inspect {raw.path} says whether another family's do; where none does, the one that you mean is read with "
        f"--prefix, for instance evalkit inspect {raw.path} --prefix {_first(paths)}"
    )


def _first(paths: list[str]) -> str:
    return next(path for path in paths if path)[:80]


def _tensors(content: Mapping[Any, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its dotted name; states of optimisers, whose keys are numbers, are passed by."""
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield before + key, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _tensors(value, f"{before}{key}.", depth + 1)


def _paths(raw: RawCheckpoint, flat: Mapping[str, Tensor]) -> list[str]:
    found = [name.removesuffix(MARK) for name in flat if name == MARK or name.endswith(f".{MARK}")]
    if len(found) > MOST:
        raise CheckpointError(f"{raw.path} holds {len(found):,} networks; no training writes more than {MOST}")
    return found


def _words(path: str) -> list[str]:
    return path.split(".")[:-1]


def _known(word: str) -> tuple[str, Role] | None:
    return next(((rule, role) for pattern, rule, role in WORDS if re.fullmatch(pattern, word)), None)


def _role(path: str) -> Role | None:
    """None where a word is not known, or where two say different things."""
    known = [_known(word) for word in _words(path)]
    said = {found[1] for found in known if found and found[1]}
    if not all(known) or len(said) > 1:
        return None
    return next(iter(said), "")


def _meant(raw: RawCheckpoint, paths: list[str], prefix: str) -> str:
    wanted = prefix if prefix.endswith(".") else f"{prefix}."
    found = [path for path in paths if path == wanted] or [path for path in paths if path.endswith(f".{wanted}")]
    if len(found) != 1:
        listed = ", ".join(path[:80] or "(no prefix)" for path in (found or paths)[:6]) or "none"
        many = "several networks lie there" if found else "no network lies there"
        raise CheckpointError(f"{raw.path}: --prefix {prefix[:80]}: {many}; the file has: {listed}")
    return found[0]


def _taken(flat: Mapping[str, Tensor], path: str, paths: list[str], role: Role) -> Wrapped:
    state = {name[len(path) :]: value for name, value in flat.items() if name.startswith(path)}
    entry = path.split(".")[0] + "." if path else ""
    dropped: dict[str, list[str]] = {}
    unexpected, others = [], [other for other in paths if other != path]
    for name in flat:
        if name.startswith(path) or not name.startswith(entry):
            continue  # the network itself, or another entry of the file, which is not looked at
        rule = _beside(name, others)
        if rule:
            dropped.setdefault(rule, []).append(name)
        else:
            unexpected.append(name)
    words = Counter[str]()
    for word in _words(path):
        words[(_known(word) or (f"--prefix {path}", ""))[0]] += len(state)
    kept = {rule: tuple(names) for rule, names in dropped.items()}
    return Wrapped(role, path, state, dict(words), kept, tuple(unexpected))


def _beside(name: str, others: list[str]) -> str:
    """The rule by which a key beside the network is left out, "" where there is none."""
    if any(other and name.startswith(other) for other in others):
        return OTHER
    while (word := name.partition(".")[0]) != name and _known(word):
        if rule := next((rule.name for rule in BESIDE if rule.covers(name)), ""):
            return rule
        name = name.partition(".")[2]
    return next((rule.name for rule in BESIDE if rule.covers(name)), "")
