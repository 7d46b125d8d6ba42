"""Landmark retrieval on revisited Oxford and Paris: which photos of a gallery show the building of the query.

What:   one vector per photo (class token after the final norm) at its native aspect, L2-normalised, cosine; photos judged
        easy, hard or junk per query. Easy looks for the easy ones, Medium for easy and hard, Hard for the hard ones;
        what is judged otherwise is taken out of the ranking. mAP by the trapezoidal rule, and mean precision at k.
Source: Radenović et al., Revisiting Oxford and Paris (arXiv:1803.11285; filipradenovic/revisitop be39832,
        python/evaluate.py, example_evaluate.py); features and sizes as DINO's (facebookresearch/dino 7c446df,
        eval_image_retrieval.py: thumbnail, batches of one; README: Oxford at 224, Paris at 512 with three scales).
Scales: the normalised image is resized by each factor (bilinear, utils.py:815-829), the vectors are averaged. DINO
        divides the average by the norm of its batch, which at its batch of one is L2 normalisation.
Grid:   pixels right and below of the last whole patch are left out, as a patch embedding without padding does.
Ties:   equal similarities rank in the order of the gallery.
Expect: DINO ViT-B/16 with MMC's settings: Oxford 32.8 medium and 10.7 hard, Paris 60.4 and 34.2 (arXiv:2308.11448,
        Table 9, which states no size).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from evalkit.errors import EvalkitError, ProtocolError, Unsupported, UsageError
from evalkit.features import decoding, view
from evalkit.metrics import bootstrap, ranking
from evalkit.metrics.similarity import cosines, normalise
from evalkit.types import Dataset, Job, Judgement, Role, Score

SETUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""What is to be found, and what is taken out of the ranking (example_evaluate.py)."""

SAVED = 500
"""Photos between two savings of what was computed."""


LABELS_APART = True
"""Labels of one split are never held against those of the other, so the splits may have other classes."""


@dataclass(frozen=True)
class Config:
    """size: longest side in pixels, never enlarged; DINO's 224 (Oxford), 512 (Paris). scales: factors on that size whose
    vectors are averaged; DINO's multi-scale is 1, 1/sqrt(2), 1/2. part: the class token as DINO, or the mean of the
    patch tokens. ks: of the precision at k, as the benchmark."""

    size: Annotated[int, Field(ge=1)] = 224
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    part: Literal["cls", "mean"] = "cls"
    ks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        if not self.scales:
            raise UsageError("scales is empty; at least one factor, as 1.0")


def run(job: Job) -> Iterator[Score]:
    """Yield "mAP@medium", "mP@1@medium" ... and the same for easy and hard. Role "train" is the gallery.

    Values are fractions in [0, 1], n the number of queries with something to find (how many have not: fact "empty"),
    intervals over queries, grouped by photo, with the gallery fixed. Raises ProtocolError for data without judgements or
    photos smaller than a patch, BrokenImage for a photo that cannot be decoded: a gallery with holes is another one.
    """
    config: Config = job.config
    gallery, queries = job.dataset("train"), job.dataset("test")
    judgements = getattr(queries, "judgements", None)
    if judgements is None:
        raise ProtocolError(
            f"{queries.name} has no judged queries; landmark retrieval runs on revisited Oxford and Paris"
        )
    vectors = _vectors(job, config)
    order = rankings(vectors["test"], vectors["train"])
    ids = [gallery[position].id for position in range(len(gallery))]
    asked = [queries[position] for position in range(len(queries))]
    job.fact("input", {"longest_side": config.size, "scales": list(config.scales), "gallery": len(ids)})
    numbers: dict[str, int] = {query.group: number for number, query in enumerate(asked)}
    empty = {}
    for setup in ("medium", "easy", "hard"):
        found = [ranks(order[i], ids, judgements[query.id], setup) for i, query in enumerate(asked)]
        kept = [i for i, places in enumerate(found) if len(places)]
        empty[setup] = len(found) - len(kept)
        groups = [numbers[asked[i].group] for i in kept]
        yield _score(job, f"mAP@{setup}", [ranking.trapezoid(found[i]) for i in kept], groups)
        for k in config.ks:
            yield _score(job, f"mP@{k}@{setup}", [ranking.precision_at(found[i], k) for i in kept], groups)
    job.fact("empty", empty)


def rankings(queries: Tensor, gallery: Tensor) -> Tensor:
    """(Q, N) int64: rows of the gallery (N, D) by falling cosine to each query (Q, D), ties in their order.

    Raises FeatureError for rows that are not finite.
    """
    similarity = cosines(normalise(queries, "queries"), normalise(gallery, "gallery"))
    return similarity.sort(dim=1, descending=True, stable=True).indices


def ranks(order: Tensor, ids: Sequence[str], judgement: Judgement, setup: str) -> Tensor:
    """(P,) int64, from 0: where what is to be found stands in one ranking (N,) of the gallery `ids`, without what is
    taken out in this setup. Empty where nothing is to be found."""
    wanted, removed = ({name for kind in kinds for name in getattr(judgement, kind)} for kinds in SETUPS[setup])
    relevant, out = (torch.tensor([name in names for name in ids]) for names in (wanted, removed))
    return ranking.ranks(order, relevant, out)


def inputs(pixels: Tensor, job: Job, scales: Sequence[float]) -> Iterator[Tensor]:
    """The normalised image (1, 3, h, w) at every scale, cut to whole patches. pixels: (3, H, W) uint8.

    Raises ProtocolError where nothing is left.
    """
    spec = job.encoder.spec
    image = view.scale(pixels.unsqueeze(0).to(job.device), spec.preprocessing.mean, spec.preprocessing.std)
    for factor in scales:
        sized = (
            image if factor == 1 else F.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
        )
        height, width = (side // spec.patch * spec.patch for side in sized.shape[-2:])
        if not height * width:
            came = "x".join(map(str, sized.shape[:1:-1]))
            raise ProtocolError(f"a photo is {came} pixels at scale {factor:.3g}, smaller than a patch ({spec.patch})")
        yield sized[..., :height, :width]


@dataclass(frozen=True)
class _Thumbnails:
    """What workers do: a position in, its pixels out; an error as its class and text."""

    dataset: Dataset
    size: int

    def __getitems__(self, positions: list[int], /) -> Any:
        try:
            sample = self.dataset[positions[0]]
            return view.thumbnail(self.dataset.image(sample.group), sample.box, self.size)
        except EvalkitError as error:
            return type(error), str(error)


def _vectors(job: Job, config: Config) -> dict[Role, Tensor]:
    """(N, D) float32 on the CPU per role; goes on where an interrupted run was saved."""
    state: dict[str, Any] = job.checkpoint.load() or {}
    vectors: dict[Role, Tensor] = {}
    roles: tuple[Role, ...] = ("test", "train")
    for role in roles:
        dataset = job.dataset(role)
        rows: list[Tensor] = list(state.get(role, torch.empty(0, job.encoder.spec.dim)))
        source = _Thumbnails(dataset, config.size)
        workers = decoding.default_workers(job.device, len(dataset) - len(rows), 64)
        loading = decoding.Loading(workers, pin=False, batch=1)
        todo = [[position] for position in range(len(rows), len(dataset))]
        for pixels in job.track(decoding.run(source, todo, loading), f"{role} photos", total=len(todo)):
            if isinstance(pixels, tuple):
                raise decoding.revived(*pixels)
            rows.append(_vector(job, config, pixels))
            if len(rows) % SAVED == 0:
                state[role] = torch.stack(rows)
                job.checkpoint.save(state)
        vectors[role] = state[role] = torch.stack(rows)
    return vectors


def _vector(job: Job, config: Config, pixels: Tensor) -> Tensor:
    """(D,) float32 on the CPU, the mean over the scales."""
    found = []
    for image in inputs(pixels, job, config.scales):
        (tokens,) = job.encode(image)
        if config.part == "cls" and tokens.cls is None:
            raise Unsupported(f"{job.encoder.spec.id} has no class token; part = 'mean' takes its patches")
        pooled = tokens.cls if config.part == "cls" else tokens.patches.float().mean((1, 2))
        found.append(pooled[0].float())  # type: ignore[index]
    return torch.stack(found).mean(0).cpu()


def _score(job: Job, name: str, outcomes: Sequence[float], groups: Sequence[int]) -> Score:
    return bootstrap.score(name, list(outcomes), list(groups), seed=job.seed)
