"""What a pickle would do, found out by running its instructions on stand-ins: nothing that it names is imported or called.

A pickle is a program for a small stack machine. This is that machine for the instructions that `torch.save` writes
(pickle protocol 2), with records of what would be built in place of tensors. It refuses

- every name outside of the calls below, and every call with other arguments than torch and numpy write;
- storages and views that reach beyond the file;
- what costs its reader more than the file is large: calls on the same long text again and again, containers that hold
  themselves or unfold to millions of values, dictionary keys made of nested tuples (hashing those takes as long as
  unfolding them, and overflows the stack where they are deep).

The messages have no file name: the caller knows it.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from reprlib import repr as brief
from typing import Any, NoReturn

from evalkit.errors import CheckpointError, UnsafeFile

MOST = 1_500_000
"""Instructions in one pickle: a list of ImageNet's 1.28 million labels fits. A ViT with its optimiser has 20,000."""

BUILT = 300_000
"""Of them, those that do more than name a number: each costs its readers some ten microseconds."""

DEEPEST = 32
"""Containers inside containers."""

UNFOLDED = 4_000_000
"""Values that a file may hold when what it refers to twice is counted twice, and that its calls may read."""

_ITEM = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
STORAGES = {f"{where}.{kind}Storage": size for where in ("torch", "torch.cuda") for kind, size in _ITEM.items()}
"""{name: bytes of one value}. Complex, quantised and untyped ones are no weights that evalkit could use."""
STORAGES |= {"torch.BoolStorage": 1, "torch.cuda.BoolStorage": 1}

PATHS = tuple(
    f"{module}.{kind}"
    for module in ("pathlib", "pathlib._local")  # Python 3.13 moved the classes
    for kind in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
)
"""Paths among the arguments of a training script. They are read as texts: no path object is made, nothing is looked up."""

_CALLS = frozenset(
    {"collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set", "_codecs.encode"}
    | {"torch.Size", "torch.device", "torch._utils._rebuild_parameter", "argparse.Namespace", "numpy.dtype"}
    | {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
    | {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
    | set(PATHS)
)
_DTYPE = re.compile(r"torch\.(bool|bfloat16|(float|int|uint)\d+)")
_NUMBER = re.compile(r"[biuf][1248]")
"""What numpy calls the dtypes of its scalars; the digit is their size in bytes."""


@dataclass(frozen=True)
class Named:
    """A name of the short list, where unpickling would have the function or class."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """count: values; item: bytes of each; kind: name of its class."""

    key: str
    count: int
    item: int
    kind: str


@dataclass(eq=False)
class Made:
    """What a call returns, if it is no container. kind: "tensor", "scalar", "device", "namespace", or the code of a
    numpy dtype. held: what it refers to."""

    kind: str
    held: list[Any] = field(default_factory=list)


class Ordered(dict[Any, Any]):
    """An OrderedDict or Counter. held: its attributes."""

    held: tuple[Any, ...] = ()


class Machine:
    """size: bytes of the whole file. records: {key: bytes} of the storages in a zip; None in the older format, whose
    storages have no directory and are declared by the pickle alone."""

    def __init__(self, size: int, records: Mapping[str, int] | None = None) -> None:
        self.size = size
        self.records = records
        self.storages: dict[str, Storage] = {}
        self._spent = 0
        self._steps = 0
        self._built = 0

    def run(self, stream: io.BytesIO) -> Any:
        """Runs one pickle, and leaves the stream behind it.

        Returns plain values as they are, stand-ins for the others. Raises UnsafeFile where it wants more than weights
        or lies about sizes, CheckpointError where it is none that torch.save wrote.
        """
        begin = stream.tell()
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for op, argument, _ in pickletools.genops(stream):
                self._count(op.name)
                step = _STEPS.get(op.name)
                if step is None:
                    stream.seek(begin)
                    _refuse_instruction(stream, op.name)
                step(self, argument)
                if op.name == "STOP":
                    return self._stack.pop()
        except (ValueError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"is truncated, damaged or no checkpoint: {str(error)[:120]}") from None
        except (IndexError, KeyError, TypeError):
            raise CheckpointError("is damaged or no checkpoint: its pickle takes what it never put there") from None
        raise CheckpointError("is truncated, damaged or no checkpoint: its pickle has no end")

    def _count(self, name: str) -> None:
        """One more instruction, of all the pickles of a file together."""
        self._steps += 1
        self._built += name not in _NUMBERS
        if self._steps > MOST:
            raise UnsafeFile(f"has a pickle of more than {MOST:,} instructions: save its state dict alone")
        if self._built > BUILT:
            raise UnsafeFile(
                f"has a pickle of more than {BUILT:,} instructions that build something: save its state dict alone"
            )

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _put(self, index: int) -> None:
        if index > MOST:
            raise UnsafeFile(f"remembers a value under the number {index:,}")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._push(self._memo[index])

    def _tuple(self, _: None) -> None:
        self._push(tuple(self._pop_mark()))

    def _short_tuple(self, length: int) -> None:
        items = tuple(self._stack[-length:])
        if len(items) < length:
            raise IndexError
        self._stack[-length:] = [items]

    def _extend(self, items: list[Any]) -> None:
        if type(target := self._stack[-1]) is not list:
            raise UnsafeFile("appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if type(target := self._stack[-1]) not in (dict, Ordered):
            raise UnsafeFile("sets items of what is no dictionary")
        target.update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        name = _dotted(argument)
        if not _allowed(name):
            _refuse(name)
        self._push(Named(name))

    def _new(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function != Named("argparse.Namespace") or arguments != ():
            raise UnsafeFile("makes an object of a class that is none of its own")
        self._push(Made("namespace"))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Named) or type(arguments) is not tuple:
            raise UnsafeFile("calls what is no function")
        self._push(self._call(function.name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What the call would return, if its arguments are those that torch.save writes."""
        match name.rpartition(".")[2], arguments:
            case "OrderedDict" | "Counter", ():
                return Ordered()
            case "OrderedDict", (list(pairs),):
                return Ordered(
                    zip(_keys(key for key, _ in self._read(pairs)), (value for _, value in pairs), strict=True)
                )
            case "Counter", (dict(counts),):
                return Ordered(self._read(counts))
            case "set", (list(items),):
                return set(_keys(self._read(items)))
            case "encode", (str(text), "latin1"):
                return self._read(text).encode("latin-1")
            case "Size", (tuple(sizes),) if len(sizes) < 64 and all(type(n) is int for n in sizes):
                return sizes
            case "device", (str(where), *index) if re.fullmatch(r"[a-z]{2,8}(:\d{1,3})?", where) and len(index) < 2:
                return Made("device")
            case "dtype", (str(code), _, third) if _NUMBER.fullmatch(code) and third in (1, True):
                return Made(code)
            case kind, parts if name in PATHS and all(type(part) is str for part in self._read(parts)):
                return Made(f"a {kind}")
            case "scalar", (Made(kind=code), bytes(data)) if _NUMBER.fullmatch(code) and len(data) == int(code[1]):
                return Made("scalar")
            case "_rebuild_parameter", (Made(kind="tensor"), bool(), hooks) if _is_none(hooks):
                return Made("tensor")
            case "_rebuild_tensor", (Storage() as storage, offset, tuple(shape), tuple(stride)):
                return self._view(storage, offset, shape, stride)
            case "_rebuild_tensor_v2", (Storage() as storage, offset, tuple(shape), tuple(stride), bool(), hooks):
                if _is_none(hooks):
                    return self._view(storage, offset, shape, stride)
        raise UnsafeFile(f"calls {name} with arguments that torch.save never writes")

    def _view(self, storage: Storage, offset: Any, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> Made:
        """A tensor, after it is found to lie inside its storage."""
        plain = all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *shape, *stride))
        if not plain or len(shape) != len(stride) or len(shape) > 16:
            raise UnsafeFile(f"lies about its size: a tensor {brief(shape)} with steps {brief(stride)}")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else -1
        if last >= storage.count or count * storage.item > self.size or max(shape, default=0) > 1 << 40:
            raise UnsafeFile(
                f"lies about its size: a tensor {brief(shape)} in {storage.count:,} values, {self.size:,} bytes of file"
            )
        return Made("tensor")

    def _build(self, _: None) -> None:
        """Sets attributes: those of a Namespace, the byte order of a dtype, `_metadata` of a state dict."""
        state, target = self._stack.pop(), self._stack[-1]
        if type(state) is dict and isinstance(target, Made) and target.kind == "namespace":
            if not all(type(key) is str and not key.startswith("__") for key in self._read(state)):
                raise UnsafeFile("sets attributes of argparse.Namespace that are no options")
            target.held.extend(state.values())
        elif type(state) is dict and isinstance(target, Ordered) and state.keys() <= {"_metadata"}:
            target.held = tuple(state.values())
        elif not (isinstance(target, Made) and _NUMBER.fullmatch(target.kind) and _is_order(state)):
            raise UnsafeFile("sets attributes that weights do not have")

    def _storage(self, _: None) -> None:
        match self._stack.pop():
            case ("storage", Named(name=kind), str(key), str(), int(count), *view) if kind in STORAGES:
                if view != ([None] if self.records is None else []):
                    raise UnsafeFile("has a storage that is a view of another one (torch before 0.4)")
                self._push(self._declare(Storage(key, count, STORAGES[kind], kind)))
            case _:
                raise UnsafeFile("asks for something from outside of the pickle that is no storage")

    def _declare(self, new: Storage) -> Storage:
        total = new.count * new.item
        if not 0 <= total <= self.size:
            raise UnsafeFile(
                f"is truncated, or lies about its size: it declares {new.count:,} values and has {self.size:,} bytes"
            )
        if self.records is not None and self.records.get(new.key) != total:
            held = f"has {self.records[new.key]:,}" if new.key in self.records else "does not exist"
            raise UnsafeFile(
                f"lies about its size: storage {new.key[:40]!r} declares {total:,} bytes, its record {held}"
            )
        old = self.storages.setdefault(new.key, new)
        if (old.count or new.count) and (old.count, old.kind) != (new.count, new.kind):
            raise UnsafeFile(f"lies about its size: storage {new.key[:40]!r} is declared twice, as different things")
        return new

    def _read(self, items: Any) -> Any:
        """The same, after its length is added to what all calls together have read."""
        self._spend(len(items))
        return items

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > UNFOLDED + self.size:
            raise UnsafeFile("is built to exhaust the machine: its values refer to each other again and again")

    def check_nesting(self, root: Any) -> None:
        """Raises UnsafeFile where containers hold themselves, are nested deeply, or unfold to more than UNFOLDED."""
        level = {id(root): (1, root)}
        for _ in range(DEEPEST):
            below: dict[int, tuple[int, Any]] = {}
            for times, container in level.values():
                children = _children(container)
                self._spend(times * len(children))
                for child in children:
                    if isinstance(child, (list, tuple, dict, Made)) and (child or isinstance(child, Ordered)):
                        below[id(child)] = (below.get(id(child), (0, None))[0] + times, child)
            level = below
        if level:
            raise UnsafeFile(f"is built to exhaust its reader: containers inside containers, more than {DEEPEST} deep")


def _children(container: Any) -> list[Any]:
    held = [*container.held] if isinstance(container, (Made, Ordered)) else []
    if isinstance(container, dict):
        return [*container.values(), *held]
    return [*container] if isinstance(container, (list, tuple)) else held


def _keys(keys: Iterable[Any]) -> Iterator[Any]:
    """Keys whose hash takes no longer than reading them. Integers under 2**60 have hashes of their own."""
    for key in keys:
        if not (key is None or type(key) in (str, bytes, float, bool) or (type(key) is int and abs(key) < 1 << 60)):
            raise UnsafeFile(f"has a {type(key).__name__} as a key; allowed are texts and numbers of less than 60 bits")
        yield key


def _is_none(hooks: Any) -> bool:
    """Whether a tensor has no hooks for its gradient: an empty OrderedDict, or None in files of Python 2."""
    return hooks is None or (isinstance(hooks, Ordered) and not hooks)


def _is_order(state: Any) -> bool:
    """Whether a dtype's state says its byte order and nothing else."""
    match state:
        case (3, "<" | ">" | "|" | "=", None, None, None, -1, -1, 0):
            return True
    return False


def _allowed(name: str) -> bool:
    return name in _CALLS or name in STORAGES or _DTYPE.fullmatch(name) is not None


def _dotted(argument: Any) -> str:
    """module.name; what has more than two words is a text, and stays one."""
    words = str(argument).split(" ")
    return ".".join(words) if len(words) == 2 else " ".join(words)


def _refuse_instruction(stream: io.BytesIO, instruction: str) -> NoReturn:
    """An instruction that torch.save never writes: the message says what the file wanted with it, where it says so."""
    text = deque[str](maxlen=2)
    for op, argument, _ in islice(pickletools.genops(stream), BUILT):
        if op.name in ("GLOBAL", "INST") and not _allowed(_dotted(argument)):
            _refuse(_dotted(argument))
        if op.name == "STACK_GLOBAL" and not _allowed(".".join(text)):
            _refuse(".".join(text))
        if isinstance(argument, str):
            text.append(argument)
    raise CheckpointError(f"is no checkpoint that torch.save wrote: it has the pickle instruction {instruction}")


def _refuse(name: str) -> NoReturn:
    if not re.fullmatch(r"\w+(\.\w+)+", name):  # a text whose first letter happens to be an instruction
        raise CheckpointError("is no checkpoint: neither safetensors nor a file of torch.save")
    if re.fullmatch(r"torch(\.\w+)*\.(_rebuild_\w+|\w*(Storage|Tensor)|Parameter|_get_layout)", name):
        raise UnsafeFile(
            f"holds more than plain tensors: it asks for {name[:120]}. Save its state dict with torch.save"
        )
    raise UnsafeFile(
        f"would run code when loaded: it asks for {name[:120]}. evalkit never runs code from a checkpoint; "
        "allowed are tensors, dictionaries, argparse.Namespace, paths and numpy scalars (a state dict saved with torch.save)"
    )


_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"})

_STEPS: dict[str, Any] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "NONE"), Machine._push),
    **dict.fromkeys(("PROTO", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), Machine._put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Machine._get),
    "SHORT_BINSTRING": lambda machine, text: machine._push(text.encode("ascii").decode()),  # elsewhere it is UTF-8
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "MARK": Machine._mark,
    "TUPLE": Machine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "GLOBAL": Machine._global,
    "NEWOBJ": Machine._new,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
    "BINPERSID": Machine._storage,
}
"""What each instruction does to the machine; all that the restricted reader of torch knows, but for EMPTY_SET."""
