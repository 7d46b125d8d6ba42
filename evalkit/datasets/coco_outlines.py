"""Regions of COCO's annotations: polygons and run-length codes, checked, kept small, and filled.

Source: cocodataset.org, "Data format"; polygons become pixels by pycocotools, as the official evaluation has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from evalkit.datasets import coco_json


class Outline(NamedTuple):
    """One annotation: its id, its class, whether it is a crowd, and its region: polygons as float64 bytes (x, y, x, y ...,
    in pixels), or the counts of a run-length code in pycocotools' compressed form."""

    id: int
    label: int
    crowd: bool
    polygons: tuple[bytes, ...]
    counts: bytes


def outline(row: Mapping[str, Any], label: int, photo: Mapping[str, Any]) -> Outline:
    """The outline of an annotation that has no problem. label: its class. photo: the entry of its image."""
    region, crowd = row["segmentation"], bool(row.get("iscrowd"))
    if isinstance(region, list):
        return Outline(row["id"], label, crowd, tuple(np.array(ring, np.float64).tobytes() for ring in region), b"")
    counts = region["counts"]
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects(dict(region), photo["height"], photo["width"])["counts"]
    return Outline(row["id"], label, crowd, (), counts.encode() if isinstance(counts, str) else bytes(counts))


def filled(item: Outline, size: tuple[int, int]) -> np.ndarray:
    """(W, H) bool, columns first as run-length codes go: the pixels of an outline. size: (width, height)."""
    width, height = size
    counts = item.counts
    if item.polygons:
        rings = [np.frombuffer(ring).tolist() for ring in item.polygons]
        counts = coco_mask.merge(coco_mask.frPyObjects(rings, height, width))["counts"]
    found = np.zeros(width * height, bool)
    start = 0
    for number, run in enumerate(_runs(counts.decode())):
        if number % 2:
            found[start : start + run] = True
        start += run
    return found.reshape(width, height)


NOTHING = "whose outline is empty"
SHORT = "whose polygons have fewer than three corners"
PARTLY = "with a polygon of fewer than three corners beside others, which are kept"


def cleared(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """(the annotation without polygons that outline nothing, what was wrong or ""); `NOTHING` and `SHORT` leave no region.

    As detectron2's load_coco_json has it (detectron2/data/datasets/coco.py: polygons need three points, an annotation
    without any is filtered out and counted). What is no list of polygons stays for `problem` to judge.
    """
    region = row.get("segmentation")
    if region in ([], [[]]):
        return row, NOTHING
    if not isinstance(region, list):
        return row, ""
    kept = [ring for ring in region if not _short(ring)]
    if len(kept) == len(region):
        return row, ""
    return {**row, "segmentation": kept}, PARTLY if kept else SHORT


def _short(ring: Any) -> bool:
    return isinstance(ring, list) and len(ring) < 6 and len(ring) % 2 == 0 and coco_json.finite(ring)


def problem(row: Mapping[str, Any], photo: Mapping[str, Any]) -> str:
    """What is wrong with an annotation's region, "" where nothing is."""
    region = row.get("segmentation")
    if isinstance(region, list) and region:
        return next((found for ring in region if (found := _ring_problem(ring, photo))), "")
    if isinstance(region, dict):
        return _code_problem(region, photo)
    return f"its segmentation is {str(region)[:60]}, neither polygons nor a run-length code"


def _ring_problem(ring: Any, photo: Mapping[str, Any]) -> str:
    if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2 or not coco_json.finite(ring):
        return f"its polygon {str(ring)[:60]} is not x, y of three corners or more"
    right, bottom = photo["width"] + coco_json.SLACK, photo["height"] + coco_json.SLACK
    xs, ys = ring[0::2], ring[1::2]
    if min(xs) < -coco_json.SLACK or min(ys) < -coco_json.SLACK or max(xs) > right or max(ys) > bottom:
        return f"a polygon leaves the {photo['width']} x {photo['height']} photo"
    return ""


def _code_problem(code: Mapping[str, Any], photo: Mapping[str, Any]) -> str:
    size, counts = [photo["height"], photo["width"]], code.get("counts")
    if code.get("size") != size:
        return f"its run-length code is for (height, width) {code.get('size')}, but the photo has {size}"
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        return f"its run-length code {str(counts)[:60]!r} cannot be decoded"
    # pycocotools leaves pixels after the last run as the memory was
    pixels = size[0] * size[1]
    return "" if sum(runs) == pixels else f"its run-length code counts {sum(runs):,} pixels, the photo has {pixels:,}"


def _runs(text: str) -> list[int]:
    """The lengths in a compressed run-length code (cocodataset/cocoapi common/maskApi.c, rleFrString); [] where it is none.

    A number takes one or more characters of six bits from "0" on, low bits first: bit 5 says that another follows, bit 4
    of the last is the sign. From the fourth number on each is the difference to the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs
