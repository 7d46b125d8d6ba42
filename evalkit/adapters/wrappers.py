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

COMPILED = "_orig_mod."
DEEPEST = 3
"""Dictionaries inside dictionaries in which a network is looked for."""

Role = Literal["", "trained", "average"]
"""Which of two networks one is; "" where its name does not say."""

_KINDS = r"(_(backbone|encoder|model|network|net|vit|trunk))?"
WORDS: tuple[tuple[str, str, Role], ...] = (
    (r"module", "DataParallel", ""),
    (r"_orig_mod", "torch.compile", ""),
    (r"state_dict", "Lightning's entry", ""),
    (r"(base_)?model|backbone|encoder|net|network|vit|trunk|feature_extractor", "attribute of the training class", ""),
    (rf"(student|online){_KINDS}", "the network trained by gradients", "trained"),
    (rf"(teacher|momentum|ema){_KINDS}", "the average of the other network", "average"),
)
"""(a word before a network's keys, the rule that takes it off, what it says of the network)."""

BESIDE = (
    Rule(
        "classifier",
        "trained with labels beside the network",
        r"(\w+_)?(classifier|fc|linear|probe|head)\.(weight|bias)",
    ),
    Rule(
        "projector",
        "maps features for the loss of another framework, whose heads are not read",
        r"(\w+_)?(head|projector|predictor|prototypes?)(\.\w+)+",
    ),
    Rule("state of the loss", "no part of a network", r"(\w+_)?(criterion|loss|center|queue|queue_ptr)(\.\w+)*"),
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
    """The file with `_orig_mod.` taken out of every key, and {rule: keys that had it}; as it was where two keys would meet."""
    count = Counter[str]()

    def cleaned(content: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in content.items():
            new = key.replace(COMPILED, "") if isinstance(key, str) else key
            count["torch.compile"] += new != key
            inner = isinstance(value, Mapping) and depth < DEEPEST
            found[new] = cleaned(value, depth + 1) if inner else value
        return found if len(found) == len(content) else dict(content)

    state = cleaned(raw.state, 1)
    return (replace(raw, state=state), dict(count)) if count.total() else (raw, {})


def networks(raw: RawCheckpoint) -> dict[str, Role | None]:
    """{path: role} of every network in a file, "" for keys without a wrapping; None where a word of the path is not known."""
    return {path: _role(path) for path in _paths(dict(_tensors(raw.state)))}


def unwrap(raw: RawCheckpoint, prefix: str = "") -> list[Wrapped]:
    """The networks of a file out of their wrapping, the average first; none where no wrapping is known.

    prefix: the path of the one that is meant, the last words of it where that is enough.
    Raises CheckpointError where two networks have the same part, or where nothing, or several things, lie under `prefix`.
    """
    flat = dict(_tensors(raw.state))
    paths = _paths(flat)
    if prefix:
        return [_taken(flat, _meant(raw, paths, prefix), paths, "")]
    roles = {path: role for path in paths if (role := _role(path)) is not None}
    if "average" in roles.values():  # the one whose name says nothing is what the average is of
        roles = {path: role or "trained" for path, role in roles.items()}
    if doubled := [path for path, role in roles.items() if list(roles.values()).count(role) > 1]:
        raise Ambiguous(_ambiguous(raw, doubled))
    return [_taken(flat, path, paths, role) for path, role in sorted(roles.items(), key=lambda item: item[1] or "b")]


def check_single(raw: RawCheckpoint, named: frozenset[str]) -> None:
    """Raises CheckpointError where several entries of the file hold a network and nothing says which counts.

    named: entries that the family's own files give a meaning.
    """
    entries = {path.split(".")[0] + "." if path else "" for path, role in networks(raw).items() if role == ""}
    open_ = sorted(entry for entry in entries if entry[:-1] not in named)
    if len(entries) > 1 and open_:
        raise Ambiguous(_ambiguous(raw, sorted(entries)))


def _ambiguous(raw: RawCheckpoint, paths: list[str]) -> str:
    listed = " and ".join(repr(path) if path else "its top level" for path in paths[:6])
    return (
        f"{raw.path} holds networks under {listed} and does not say which of them counts: "
        f"choose one with --prefix, for instance --prefix {next(path for path in paths if path)}"
    )


def _tensors(content: Mapping[Any, Any], before: str = "", depth: int = 1) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its dotted name; states of optimisers, whose keys are numbers, are passed by."""
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield before + key, value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _tensors(value, f"{before}{key}.", depth + 1)


def _paths(flat: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(MARK) for name in flat if name == MARK or name.endswith(f".{MARK}")]


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
        listed = ", ".join(path or "(no prefix)" for path in (found or paths)[:6]) or "none"
        many = "several networks lie there" if found else "no network lies there"
        raise CheckpointError(f"{raw.path}: --prefix {prefix[:80]}: {many}; the file has: {listed}")
    return found[0]


def _taken(flat: Mapping[str, Tensor], path: str, paths: list[str], role: Role) -> Wrapped:
    state = {name[len(path) :]: value for name, value in flat.items() if name.startswith(path)}
    entry = path.split(".")[0] + "." if path else ""
    dropped: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name in flat:
        if name.startswith(path) or not name.startswith(entry):
            continue  # the network itself, or another entry of the file, which is not looked at
        rule = _beside(name, [other for other in paths if other != path])
        if rule:
            dropped[rule] = (*dropped.get(rule, ()), name)
        else:
            unexpected.append(name)
    words = Counter[str]()
    for word in _words(path):
        words[(_known(word) or (f"--prefix {path}", ""))[0]] += len(state)
    return Wrapped(role, path, state, dict(words), dropped, tuple(unexpected))


def _beside(name: str, others: list[str]) -> str:
    """The rule by which a key beside the network is left out, "" where there is none."""
    if any(other and name.startswith(other) for other in others):
        return OTHER
    while (word := name.partition(".")[0]) != name and _known(word):
        if rule := next((rule.name for rule in BESIDE if rule.covers(name)), ""):
            return rule
        name = name.partition(".")[2]
    return next((rule.name for rule in BESIDE if rule.covers(name)), "")
