"""Everything that evalkit raises on purpose. Each message says what came, what is allowed and what to do.

EvalkitError
├── NotARegularFile         a FIFO, socket, device or folder stands where a file is read
├── FileTooLarge            a file has more bytes than are read of its kind
├── CatalogError            a recipe, manifest or suite file is wrong
│   └── UnknownName         no such encoder, family, recipe, suite, dataset, runner: the nearest names are given
├── CheckpointError         a weights file cannot be used
│   ├── UnsafeFile          it would need code to run, or it lies about its size
│   ├── KeyMismatch         keys missing, unexpected or mis-shaped
│   └── DigestMismatch      the file is not the one that the manifest names
├── FetchError              a weights file cannot be fetched (address, network, disk), or another thing came
│   └── NotFetched          it has not been fetched yet; the message has the command
├── DatasetError            files on disk are not what the layout says
│   ├── MissingFiles        all the missing ones, with the expected layout
│   └── BrokenImage         one image that cannot be decoded
├── FeatureError            features cannot be computed (not finite, wrong shape)
│   └── StoreError          the feature store cannot be read or written
├── ProtocolError           a protocol cannot be run on these data (k larger than the bank, an empty split)
├── Unsupported             the encoder lacks what a recipe needs; the table shows n/a and this reason
│   └── NoProjection        the checkpoint has no pretraining head
├── RecordError             a record cannot be read, or is not comparable
├── StateError              the state that a run would go on from cannot be used
├── PretrainError           a training run cannot start, or stopped (loss not finite)
├── OutOfMemory             the device or the machine has too little memory for the work
├── UsageError              an option that cannot be: the message names it
└── ExtraMissing            an optional dependency is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvalkitError(Exception):
    """The root of the tree: what the command line prints in one line, without a traceback."""


class NotARegularFile(EvalkitError):
    """A FIFO, a socket, a device or a folder stands where a file is read; the message says which."""


class FileTooLarge(EvalkitError):
    """A file has more bytes than are read of its kind; the message has both numbers."""


LISTED = 40
"""Names that a message spells out."""


class CatalogError(EvalkitError):
    """A recipe, manifest or suite file is wrong; the message names file, key and what is allowed."""


class UnknownName(CatalogError):
    """A name that the catalog does not hold."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        listed = ", ".join(names[:LISTED]) or "none"
        more = f" and {len(names) - LISTED} more (evalkit list prints them)" if len(names) > LISTED else ""
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {listed}{more}."
        super().__init__(f"there is no {kind} named {name!r}. {hint}")


class CheckpointError(EvalkitError):
    """A weights file cannot be used."""


class UnsafeFile(CheckpointError):
    """The file would need code of its own to run, or is damaged or built to exhaust the machine."""


class KeyMismatch(CheckpointError):
    """The keys of the file and of the architecture do not agree; the message lists them."""


class DigestMismatch(CheckpointError):
    """The sha256 of the file is not the one that the manifest names; the message has both."""


class FetchError(EvalkitError):
    """A weights file cannot be fetched; the message says whether the address, the network or the disk is why."""


class NotFetched(FetchError):
    """The weights of an encoder are not on this machine; the message has the command that fetches them."""


class DatasetError(EvalkitError):
    """Files on disk are not what the dataset's layout says."""


class MissingFiles(DatasetError):
    """Files that the layout asks for are absent; the message lists all of them and the expected layout."""


class BrokenImage(DatasetError):
    """One image cannot be decoded; the message names it."""


class FeatureError(EvalkitError):
    """Features cannot be computed, or are not finite."""


class StoreError(FeatureError):
    """The feature store cannot be read or written."""


class ProtocolError(EvalkitError):
    """A protocol cannot be run on these data."""


class Unsupported(EvalkitError):
    """The encoder lacks what a recipe needs. The cell becomes n/a with this message, never an invented value."""


class NoProjection(Unsupported):
    """The checkpoint holds no pretraining head."""


class RecordError(EvalkitError):
    """A record cannot be read, or cannot stand beside another."""


class StateError(EvalkitError):
    """The state that a run would go on from is damaged, of something else, or no state; the message names the file."""


class PretrainError(EvalkitError):
    """A training run cannot start, or had to stop."""


class OutOfMemory(EvalkitError):
    """The work does not fit the memory of the device or of the machine."""


class UsageError(EvalkitError):
    """An argument that cannot be; the message says which values can."""


class ExtraMissing(EvalkitError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra '{extra}': pip install -e '.[{extra}]' in the clone (make setup has it)"
        )
