"""Pose probe: one linear layer from the frozen patch tokens of a person's box to heatmaps of the keypoints.

What:   the box is warped to H x W pixels; patch tokens of the last block after the final norm; one linear layer, its maps
        enlarged to the heatmap's size; keypoints are the maxima, of the mean of the maps of the box and of its mirror
        image. COCO's AP and AR by pycocotools, or the share of keypoints within a fifth of the torso (PCK).
Source: Zhu et al., Understanding Self-Supervised Pretraining with Part-Aware Representation Learning (arXiv:2301.11915),
        Table 10, which names the layer and the metrics; no code of it was released. Whatever else is needed is that of
        ViTPose (arXiv:2204.12484; ViTAE-Transformer/ViTPose c050ed2, configs/body/2d_kpt_sview_rgb_img/topdown_heatmap/
        coco/ViTPose_base_simple_coco_256x192.py); see `probing.heatmap_head` and `probing.placement`.
Choice: boxes are the annotated ones, and each gives one pose, so nothing is suppressed; ViTPose's headline numbers use
        boxes of a detector. "online" trains on shaken boxes, "cached" on the boxes as they are, whose tokens are computed
        once: different protocols with different ids.
Rule:   one rate, the whole training split, the last epoch.
Expect: AP 23.6 with MAE ViT-B/16, 16.6 with DINO (Table 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from evalkit.datasets.selection import offers
from evalkit.errors import ProtocolError, UsageError
from evalkit.metrics import bootstrap, intervals, keypoints, pose
from evalkit.metrics.pose import Decoding
from evalkit.probing.heatmap_head import HeatmapHead, Learner, factor
from evalkit.probing.placement import Jitter, Still, in_cells, on_photo
from evalkit.probing.posed import PIECE, Frame, by_photo, cached, online, pieces, tokens_of
from evalkit.types import Job, Posed, Role, Score

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Config:
    """How to train and to judge; the defaults are ViTPose's, see the module.

    mode: "online" or "cached". size: (H, W) of the input in pixels, rounded down to multiples of the patch; cells: (h, w)
    of the heatmaps. sigma: of the targets in cells. rate, batch_size (8 x 64), epochs, warmup_steps, drops (epochs after
    which the rate is a tenth), weight_decay, clip (norm of the gradient, 0 for none): of the training. flip, half_body,
    scale, turn, turned: see `probing.placement.Jitter`, of "online". mirror: average with the mirror image at test.
    decoding: "quarter", "dark" or "argmax". confident: keypoints whose map is higher than this make the score of a pose,
    their mean height. measures: "oks" (AP, AR) and "pck". pck, pckh: share of the torso, and of the head where the
    data have one. seeds: one layer each; in "online" all see the same boxes.
    Raises UsageError for values that cannot be.
    """

    mode: Literal["online", "cached"] = "online"
    size: tuple[Positive, Positive] = (256, 192)
    cells: tuple[Positive, Positive] = (64, 48)
    sigma: Annotated[float, Field(gt=0)] = 2.0
    rate: Annotated[float, Field(gt=0)] = 5e-4
    batch_size: Positive = 512
    epochs: Positive = 210
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    drops: tuple[Positive, ...] = (170, 200)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(ge=0)] = 1.0
    flip: Share = 0.5
    half_body: Share = 0.3
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.5
    turn: Annotated[float, Field(ge=0)] = 40.0
    turned: Share = 0.6
    mirror: bool = True
    decoding: Decoding = "quarter"
    confident: float = 0.2
    measures: tuple[Literal["oks", "pck"], ...] = ("oks",)
    pck: Annotated[float, Field(gt=0)] = 0.2
    pckh: Annotated[float, Field(gt=0)] = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        for name in ("seeds", "measures"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise UsageError(f"{name} is {list(given)}; at least one is needed, each once")
        if any(drop >= self.epochs for drop in self.drops):
            raise UsageError(f"drops is {list(self.drops)}; each is an epoch before the last of {self.epochs}")

    @property
    def jitter(self) -> Jitter:
        """Of "online"."""
        return Jitter(self.flip, self.half_body, self.scale, self.turn, self.turned)


@dataclass
class _Found:
    """What was found in the test split. positions: (N,) samples. places: by seed, (N, K, 2) pixels of the photo. heights:
    by seed, (N, K) of the maps."""

    positions: list[int] = field(default_factory=list)
    places: dict[int, list[Tensor]] = field(default_factory=dict)
    heights: dict[int, list[Tensor]] = field(default_factory=dict)


def run(job: Job) -> Iterator[Score]:
    """Yield, as measures say, "AP", "AP50" ... "ARL", "AP@seed=0" ... and "OKS"; "PCK@0.2", "PCK@0.2@seed=0"
    ..., "PCK@0.2@knee" ..., "PCKh@0.5" and its seeds.

    All are fractions in [0, 1], means over seeds. n of AP and AR is the number of people to be found (of that size), their
    interval is over photos, each resample evaluated whole; they are no mean of outcomes: compare encoders by "OKS", each
    person's similarity to the pose found in their own box. n of PCK is the number of labelled keypoints of people with a
    torso. The layer is kept as "head", what it found as "poses" (x, y, height; in pixels of the photo). People who are no
    sample of the test split, because of --limit too, are neither right nor wrong.
    Unfinished training is taken up at the last whole epoch, with the same result to the bit.
    Raises ProtocolError for data without people or without what a measure needs; FeatureError where tokens are not finite
    or the layer diverged; UsageError for an input below one patch.
    """
    config: Config = job.config
    _check(job, config)
    frame = _frame(job, config)
    learners = _train(job, config, frame)
    job.keep("head", {f"{seed}/{k}": v.cpu() for seed, of in learners.items() for k, v in of.head.state_dict().items()})
    found = _tested(job, config, frame, learners)
    places = {seed: torch.cat(rows) for seed, rows in found.places.items()}
    heights = {seed: torch.cat(rows) for seed, rows in found.heights.items()}
    _keep(job, found.positions, places, heights)
    if "oks" in config.measures:
        yield from _oks(job, config, found.positions, places, heights)
    if "pck" in config.measures:
        yield from _pck(job, config, found.positions, places)


def _check(job: Job, config: Config) -> None:
    roles: tuple[Role, ...] = ("train", "test")
    for role in roles:
        if not offers(job.dataset(role), "figure"):
            name = job.dataset(role).name
            raise ProtocolError(
                f"a pose probe needs people with keypoints; {name} ({job.dataset(role).split}) has none"
            )
    skeleton = _posed(job, "test").skeleton
    if skeleton != _posed(job, "train").skeleton:
        raise ProtocolError("the training and the test split have different keypoints")
    if "oks" in config.measures and not skeleton.sigmas:
        raise ProtocolError(f"{job.dataset('test').name} has no published sigmas, which OKS needs; measure pck")
    if "pck" in config.measures and not skeleton.torso:
        raise ProtocolError(f"{job.dataset('test').name} has no keypoints of a torso, which PCK needs; measure oks")


def _posed(job: Job, role: Role) -> Posed:
    return cast(Posed, job.dataset(role))


def _frame(job: Job, config: Config) -> Frame:
    patch = job.encoder.spec.patch
    height, width = (side // patch * patch for side in config.size)
    if not height or not width:
        raise UsageError(
            f"the input is {config.size} pixels, less than one patch of {job.encoder.spec.id} ({patch} pixels)"
        )
    # the recipe's square view is not used: these stand for its facts
    for name, value in {"size": [height, width], "asked": list(config.size), "resize": [height, width]}.items():
        job.fact(name, value)
    job.fact("grid", [height // patch, width // patch])
    return Frame((height, width), config.cells)


# ---------------------------------------------------------------- training


def _train(job: Job, config: Config, frame: Frame) -> dict[int, Learner]:
    people = len(job.dataset("train"))
    batch = min(config.batch_size, people)
    steps = -(-people // batch)
    job.fact("training", {"people": people, "batch": batch, "steps_per_epoch": steps, "steps": steps * config.epochs})
    learners = _learners(job, config)
    state = job.checkpoint.load()
    first = 0
    if state is not None:
        for seed, learner in learners.items():
            learner.restore(state["learners"][seed])
        first = int(state["epochs"])
    if config.mode == "online":
        epoch_of = online(job, frame, batch, seeds=config.seeds, jitter=config.jitter)
    else:
        epoch_of = cached(job, frame, batch, seeds=config.seeds)
    for epoch in job.track(range(first, config.epochs), f"pose probe, {config.mode}", total=config.epochs - first):
        step = dict.fromkeys(learners, epoch * steps)
        for seeds, rows in epoch_of(epoch):
            wanted = pose.targets(rows.points, rows.labelled, config.cells, sigma=config.sigma)
            for seed in seeds:
                share = factor(step[seed], epoch, warmup=config.warmup_steps, drops=config.drops)
                learners[seed].step(rows.tokens, wanted, config.rate * share)
                step[seed] += 1
        trained = {seed: learner.state() for seed, learner in learners.items()}
        job.checkpoint.save({"epochs": epoch + 1, "learners": trained})
    return learners


def _learners(job: Job, config: Config) -> dict[int, Learner]:
    learners = {}
    for seed in config.seeds:
        dim, count = job.encoder.spec.dim, len(_posed(job, "train").skeleton.names)
        head = HeatmapHead(dim, count, config.cells, rng=job.rng("pose", "first", seed))
        learners[seed] = Learner(head.to(job.device), weight_decay=config.weight_decay, clip=config.clip)
    return learners


# ---------------------------------------------------------------- test


def _tested(job: Job, config: Config, frame: Frame, learners: Mapping[int, Learner]) -> _Found:
    found = _Found(places={seed: [] for seed in learners}, heights={seed: [] for seed in learners})
    mirrored = torch.tensor(_posed(job, "test").skeleton.mirrored, device=job.device)
    photos = by_photo(job, "test")
    read = job.track(job.read("test", Still(frame.size), photos), "pose probe, test", total=len(photos))
    views = ((first + i, view) for (first, _), several in read for i, view in enumerate(several))
    for piece in pieces(views, PIECE):
        positions, several = zip(*piece, strict=True)
        found.positions += positions
        pixels, back = torch.stack([v.pixels for v in several]), torch.stack([v.back for v in several])
        tokens = tokens_of(job, pixels)
        turned = tokens_of(job, pixels.flip(-1)) if config.mirror else None
        for seed, learner in learners.items():
            maps = learner.heatmaps(tokens)
            if turned is not None:
                maps = (maps + learner.heatmaps(turned).flip(-1)[:, mirrored]) / 2
            cells, height = pose.decode(maps, config.decoding)
            found.places[seed].append(on_photo(in_cells(cells.cpu(), frame.cells, frame.size), back))
            found.heights[seed].append(height.cpu())
    if not found.positions:
        raise ProtocolError("nobody of the test split can be read: there is nothing to score")
    if len(found.positions) < len(job.dataset("test")):
        job.fact("test_people_left_out", len(job.dataset("test")) - len(found.positions))
    return found


def _keep(job: Job, positions: Sequence[int], places: Mapping[int, Tensor], heights: Mapping[int, Tensor]) -> None:
    rows = {f"{s}/keypoints": torch.cat([places[s], heights[s][..., None]], dim=-1).float() for s in places}
    job.keep("poses", {"position": torch.tensor(positions, dtype=torch.int64), **rows})


def _oks(
    job: Job, config: Config, positions: Sequence[int], places: Mapping[int, Tensor], heights: Mapping[int, Tensor]
) -> Iterator[Score]:
    dataset = _posed(job, "test")
    numbers = _photos(dataset, positions)
    sigmas = dataset.skeleton.sigmas
    people = list(_people(dataset, positions, numbers))
    found = {}
    for seed in places:
        score = _sureness(heights[seed], config.confident)
        rows = zip(numbers, places[seed].numpy(), score.tolist(), strict=True)
        found[seed] = keypoints.evaluate(people, [keypoints.Pose(*row) for row in rows], sigmas)
    drawn = {seed: keypoints.resample(of, seed=job.seed) for seed, of in found.items()}
    people_of = {area: int(table.people.sum()) for area, table in next(iter(found.values())).tables.items()}
    photos = next(iter(found.values())).photos
    for name, (_, area, _) in keypoints.STATISTICS.items():
        value = sum(of.values[name] for of in found.values()) / len(found)
        bounds = intervals.of_resamples(np.mean([of[name] for of in drawn.values()], axis=0), photos)
        yield Score(name, value, people_of[area], bounds.low, bounds.high, interval=bounds.method)
    for seed, of in found.items():
        bounds = intervals.of_resamples(drawn[seed]["AP"], photos)
        told = (of.values["AP"], people_of["all"], bounds.low, bounds.high)
        yield Score(f"AP@seed={seed}", *told, note="seed", interval=bounds.method)
    truth, areas = _truth(dataset, positions)
    near = torch.stack([pose.oks(of, truth, areas, sigmas) for of in places.values()]).mean(0)
    yield bootstrap.score("OKS", near.numpy(), numbers, seed=job.seed)


def _sureness(heights: Tensor, above: float) -> Tensor:
    """(N,) mean height of the maps that are higher than `above`, 0 where none is."""
    sure = heights > above
    return torch.where(sure, heights, 0).sum(1) / sure.sum(1).clamp_min(1)


def _photos(dataset: Posed, positions: Sequence[int]) -> list[int]:
    """A number per person, from 1: those of one photo share it."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(dataset[position].group, len(numbers) + 1) for position in positions]


def _people(dataset: Posed, positions: Sequence[int], numbers: Sequence[int]) -> Iterator[keypoints.Truth]:
    """Everybody in the photos; those who are no sample do not count."""
    chosen = {dataset.figure(position).id for position in positions}
    photos = dict(zip((dataset[position].group for position in positions), numbers, strict=True))
    for group, number in photos.items():
        for one in dataset.figures(group):
            counts = one.id in chosen and not one.crowd
            yield keypoints.Truth(number, one.keypoints, one.area, one.box, counts=counts, crowd=one.crowd)


def _truth(dataset: Posed, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(N, K, 3) keypoints and (N,) areas."""
    figures = [dataset.figure(position) for position in positions]
    rows = torch.stack([torch.from_numpy(figure.keypoints.copy()) for figure in figures])
    return rows, torch.tensor([figure.area for figure in figures], dtype=torch.float64)


def _pck(job: Job, config: Config, positions: Sequence[int], places: Mapping[int, Tensor]) -> Iterator[Score]:
    dataset = _posed(job, "test")
    skeleton = dataset.skeleton
    truth, _ = _truth(dataset, positions)
    groups = torch.tensor(_photos(dataset, positions))[:, None].expand(-1, len(skeleton.names))
    kinds = [name.removeprefix("left_").removeprefix("right_") for name in skeleton.names]
    for label, share, pairs in (("PCK", config.pck, skeleton.torso), ("PCKh", config.pckh, skeleton.head)):
        if not pairs:
            continue
        reference = pose.lengths(truth, pairs)
        job.fact(f"{label}_people_without_reference", int(reference.isnan().sum()))
        each = {seed: pose.pck(of, truth, reference, share=share) for seed, of in places.items()}
        right = torch.stack(list(each.values())).mean(0)
        name = f"{label}@{share:g}"
        yield _share(job, name, right, groups)
        for seed, of in each.items():
            yield _share(job, f"{name}@seed={seed}", of, groups, note="seed")
        for kind in dict.fromkeys(kinds) if label == "PCK" else ():
            columns = [i for i, other in enumerate(kinds) if other == kind]
            yield _share(job, f"{name}@{kind}", right[:, columns], groups[:, columns])


def _share(job: Job, name: str, right: Tensor, groups: Tensor, note: str = "") -> Score:
    judged = ~right.isnan()
    return bootstrap.score(name, right[judged].numpy(), groups[judged].numpy(), note=note, seed=job.seed)
