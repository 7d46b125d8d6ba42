"""How cost grows as the work grows: seconds at several sizes, and the exponent, for what people wait for.

What:   each work at three sizes, in turn, the fastest repeat of each; the exponent is the slope of the logarithm of time over
        the logarithm of size (least squares): 1 where twice the work takes twice the time, 2 where it takes four times.
        Fixed costs pull it down, so the least size is already some tenths of a second.
Run:    python bench/growth.py [--quick] [--only NAME] [--threads N]. Each line: name, what grows, seconds, exponent, target,
        met or NOT MET; exit code 1 where not met.
Expect: at most 1.15, since the work is linear; 2.15 for object retrieval, where every row is compared with every other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit import catalog, records
from evalkit.features import shards
from evalkit.features.decoding import Pack
from evalkit.features.forward import Forward, pipelined
from evalkit.features.key import Request
from evalkit.features.store import FeatureStore
from evalkit.features.stored import Columns, Gathered, MappedShard, StoredFeatures, serialised
from evalkit.metrics.propagation import Rules, propagate
from evalkit.metrics.ranking import leave_one_out
from evalkit.probing import train
from evalkit.probing.dense_head import Learner, LinearHead
from evalkit.probing.dense_windows import Sliding, label_maps
from evalkit.probing.enlarging import enlargement
from evalkit.probing.heads import Heads, first_weights
from evalkit.reporting import table
from evalkit.runners import knn, logreg
from evalkit.types import EncoderSpec, Preprocessing, Tokens, View

LINEAR, QUADRATIC = 1.15, 2.15
CLASSES, DIM = 20, 192
TABLE_COLUMNS = 10
KEY = "b" * 64

Work = Callable[[], object]


@dataclass(frozen=True)
class Growing:
    """make: the work at a size, and what it needs made beforehand. sizes: ascending. unit: what is counted."""

    name: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int, Path], Work]
    target: float = LINEAR


def drawn(*shape: int) -> Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels_of(count: int, classes: int = CLASSES) -> Tensor:
    """(count,) int64, every class in turn."""
    return torch.arange(count) % classes


def predicting(rows: int, _: Path) -> Work:
    """2,000 queries among so many rows."""
    bank, queries = drawn(rows, DIM), drawn(2000, DIM)
    return lambda: knn.predict(queries, bank, labels_of(rows), ks=(10, 20), temperature=0.07)


def voting(rows: int, _: Path) -> Work:
    """The same, with the votes of all classes."""
    bank, queries = drawn(rows, DIM), drawn(2000, DIM)
    return lambda: knn.vote(queries, bank, labels_of(rows), ks=(10, 20), temperature=0.07)


def asking(queries: int, _: Path) -> Work:
    """So many queries among 10,000 rows."""
    bank, asked = drawn(10_000, DIM), drawn(queries, DIM)
    return lambda: knn.predict(asked, bank, labels_of(10_000), ks=(10, 20), temperature=0.07)


def retrieving(rows: int, _: Path) -> Work:
    """Every row against all others."""
    features = drawn(rows, DIM)
    return lambda: leave_one_out(features, labels_of(rows))


def sweeping(images: int, _: Path) -> Work:
    """An epoch of 13 heads."""
    features, labels = drawn(images, DIM), labels_of(images)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        heads = Heads(first_weights(DIM, CLASSES, torch.Generator().manual_seed(0)), [0.01 * n for n in range(1, 14)])
        train.fit({"": heads}, {"": features}, labels, plan=train.Plan(1, 128), order=lambda _: order)

    return work


def regressing(images: int, _: Path) -> Work:
    """20 steps of L-BFGS: how many it needs depends on the data, not on their number."""
    features, labels = drawn(images, DIM).double(), labels_of(images)
    return lambda: logreg.fit(features, labels, penalty=1.0, tolerance=1e-12, iterations=20)


def stepping(crops: int, _: Path) -> Work:
    """Steps of a segmentation head, two crops each."""
    tokens, onto = drawn(2, 16, 16, DIM), enlargement((16, 16), (64, 64), (256, 256))
    truth = labels_of(2 * 256 * 256).view(2, 256, 256).to(torch.int16)

    def work() -> None:
        head = LinearHead(DIM, CLASSES, rng=torch.Generator().manual_seed(0))
        learner, rng = Learner(head, weight_decay=0.05), torch.Generator()
        for _ in range(crops // 2):
            learner.step(tokens, truth, onto, rate=1e-5, rng=rng)

    return work


def sliding(photos: int, _: Path) -> Work:
    """Sliding windows over photos, the encoder left out."""
    given, windows = list(drawn(photos, 3, 256, 384)), Sliding(256, 171, 16, 4)
    weight = drawn(3, CLASSES)

    def logits(pieces: Tensor) -> Tensor:
        return F.avg_pool2d(pieces, 16).permute(0, 2, 3, 1) @ weight

    return lambda: label_maps(given, [(256, 384)] * photos, windows, logits=logits, at_once=4)


def propagating(frames: int, _: Path) -> Work:
    """A clip of so many frames; one context beside the first frame, so that the first frames cost as much as the last."""
    mask = torch.zeros(30, 53, dtype=torch.int64)
    mask[10:20, 20:30] = 1
    clip = drawn(30, 53, 64)
    return lambda: propagate((clip.roll(n, 1) for n in range(frames)), mask, rules=Rules(context=1))


class Dim:
    """An encoder that costs nothing."""

    spec = EncoderSpec("dim", "bench", "dim", DIM, 12, 6, 16, (14, 14), Preprocessing(), "untrained", "", 1,
                       frozenset({"cls"}), seed=0)  # fmt: skip

    def encode(self, images: Tensor, blocks: Sequence[int] = (-1,), norm: Any = True) -> tuple[Tokens, ...]:
        """Constant tokens."""
        tokens = torch.ones(len(images), 197, DIM)
        return (Tokens(tokens[:, 0], tokens[:, 1:].reshape(len(images), 14, 14, DIM)),)


def extracting(images: int, _: Path) -> Work:
    """Batches of decoded images to gathered rows."""
    request = Request(("cls", "mean")).resolved(12)
    forward = Forward(Dim(), View(224, 256), request, torch.device("cpu"), "fp32")  # type: ignore[arg-type]
    batch = Pack(tuple(range(64)), torch.zeros(64, 3, 224, 224, dtype=torch.uint8), (), 64)

    def work() -> None:
        gathered = Gathered(images)
        for _, rows in pipelined(forward, [batch] * (images // 64)):
            gathered.add(rows, 64)

    return work


def opening(count: int, folder: Path) -> Work:
    """An entry of so many shards of 64 rows: checked, opened and read."""
    store, rows = FeatureStore(folder / f"store-{count}"), {"cls.0": drawn(64, DIM)}
    spans = [(64 * n, 64 * n + 64) for n in range(count)]
    for number, (first, stop) in enumerate(spans):
        sealed, _ = shards.seal(serialised(rows, shards.Facts(KEY, number, first, stop, 64)))
        shards.write(store.folder(KEY) / shards.name(number), sealed)
    order = tuple((str(n), str(n), None) for n in range(64 * count))
    columns = Columns(order, torch.zeros(64 * count, dtype=torch.int64), torch.arange(64 * count))

    def work() -> None:
        held, _ = store.sound(KEY, spans)
        mapped = [MappedShard(store.folder(KEY) / shards.name(n), found.rows) for n, found in held.items()]
        StoredFeatures(mapped, columns, [], Request(("cls",), (0,)), 1).get("cls", 0)

    return work


def written(cells: int, folder: Path) -> Path:
    """A folder of records, as many as a table of ten columns has cells."""
    out = folder / f"runs-{cells}"
    for column in catalog.suite("mini").columns[:TABLE_COLUMNS]:
        recipe = catalog.recipe(column.recipe)
        name = column.score or recipe.headline
        for encoder in range(cells // TABLE_COLUMNS):
            record = a_record(f"encoder-{encoder}", recipe.id, name, value=0.5 + encoder * 1e-5)
            path = records.path_of(out, record.encoder["id"], recipe.id, record.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records.sealed(json.loads(json.dumps(dataclasses.asdict(record))))))
    return out


def a_record(encoder: str, recipe: str, score: str, *, value: float) -> records.Record:
    """With nothing in it that no reader asks for."""
    plain = {"name": score, "value": value, "n": 100, "low": value - 0.1, "high": value + 0.1, "unit": "fraction",
             "note": "", "interval": "bootstrap"}  # fmt: skip
    identity = {"encoder": encoder, "recipe": recipe}
    test = {"digest": "0" * 64, "limit": None, "samples": 100, "samples_of_whole": 100}
    return records.Record(
        records.key_of(identity), "same", "2026-01-01T00:00:00+00:00", {"id": encoder, "digest": "d"},
        {"id": recipe, "version": 1, "headline": score}, {"test": test}, {"given": {}, "resolved": {"limit": None}},
        {}, identity, (plain,),
    )  # fmt: skip


def finding(cells: int, folder: Path) -> Work:
    """All records of a folder, read and checked."""
    out = written(cells, folder)
    return lambda: records.find(out)


def loading(cells: int, folder: Path) -> Work:
    """The same as a pandas table."""
    out = written(cells, folder)
    return lambda: records.load(out)


def tabling(cells: int, folder: Path) -> Work:
    """The table of a suite; without outcomes, so that no pair is tested and the table alone is timed."""
    suite = catalog.suite("mini")
    suite = dataclasses.replace(suite, columns=suite.columns[:TABLE_COLUMNS])
    out = written(cells, folder)
    return lambda: table.build(suite, out)


EVERY = (
    Growing("k-NN, predict", "rows of the bank", (20_000, 40_000, 80_000), predicting),
    Growing("k-NN, vote", "rows of the bank", (20_000, 40_000, 80_000), voting),
    Growing("k-NN, predict", "queries", (2_000, 4_000, 8_000), asking),
    Growing("object retrieval", "rows", (2_000, 4_000, 8_000), retrieving, QUADRATIC),
    Growing("linear sweep", "images", (8_192, 16_384, 32_768), sweeping),
    Growing("logistic regression", "images", (10_000, 20_000, 40_000), regressing),
    Growing("segmentation, steps", "crops", (8, 16, 32), stepping),
    Growing("segmentation, windows", "photos", (64, 128, 256), sliding),
    Growing("video propagation", "frames", (8, 16, 32), propagating),
    Growing("extraction", "images", (512, 1_024, 2_048), extracting),
    Growing("store", "shards", (64, 128, 256), opening),
    Growing("records.find", "cells", (1_000, 3_000, 10_000), finding),
    Growing("records.load", "cells", (1_000, 3_000, 10_000), loading),
    Growing("tables", "cells", (1_000, 3_000, 10_000), tabling),
)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def measure(growing: Growing, folder: Path, *, quick: bool) -> bool:
    """One line."""
    sizes = tuple(size // 4 for size in growing.sizes) if quick else growing.sizes
    works = [growing.make(size, folder) for size in sizes]
    best = [math.inf] * len(works)
    for _ in range(2):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - start)
    found = exponent(sizes, best)
    values = "  ".join(f"{size:,}: {second:.2f} s" for size, second in zip(sizes, best, strict=True))
    verdict = "met" if found <= growing.target else "NOT MET"
    name = f"{growing.name}, {growing.unit}"
    print(f"{name:<34} {values:<48} exponent {found:4.2f}   target <= {growing.target}   {verdict}", flush=True)
    return found <= growing.target


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when every target is met, else 1."""
    parser = argparse.ArgumentParser(description="how cost grows as the work grows")
    parser.add_argument("--quick", action="store_true", help="a quarter of every size: fixed costs then hide more")
    parser.add_argument("--only", default="", metavar="NAME", help="works whose name begins so")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    met = []
    for growing in EVERY:
        if growing.name.startswith(options.only):
            with tempfile.TemporaryDirectory() as folder:
                met.append(measure(growing, Path(folder), quick=options.quick))
    return 0 if met and all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
