"""How large the thing is that a recipe asks about, from what its record says about runner and data.

scene: a whole photograph has the label. object: one thing cut out of a photograph. part: a part of a thing, or a joint.
patch: every patch or pixel of its own. video: patches followed through time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORDER = ("scene", "object", "part", "patch", "video")

MEANING = {
    "scene": "whole photographs",
    "object": "objects cut out of photographs",
    "part": "parts of objects, joints of bodies",
    "patch": "single patches and pixels",
    "video": "patches followed from frame to frame",
}

_OF_RUNNER = {
    "video": "video",
    "segmentation": "patch",
    "hummingbird": "patch",
    "prompt": "patch",
    "similarity": "patch",
    "landmarks": "part",
    "pose": "part",
}
_OF_DATA = {
    "coco_objects": "object",
    "ccp_items": "object",
    "cub_parts": "part",
    "coco_keypoints": "part",
    "coco_pose": "part",
    "lsp": "part",
    "lsp_pose": "part",
}


def of(recipe: Mapping[str, Any]) -> str:
    """The grain of a record's recipe, one of ORDER."""
    data = recipe.get("dataset") or {}
    name = str(data.get("name", ""))
    if (runner := str(recipe.get("runner", ""))) in _OF_RUNNER:
        return _OF_RUNNER[runner]
    if name == "ccp_items" and (data.get("config") or {}).get("labels"):
        return "part"  # a chosen few labels: hair, shoes and the like, one place of the body each
    return _OF_DATA.get(name, "scene")
