"""The parts of Pascal-Part's sixteen objects, as the development kit names them (part2ind.m, repeated in
CSAILVision/unifiedparsing meta_file/pascal/part2ind.m), several of a kind made one: 193 with the part-aware paper.

The kit numbers parts of which an object may have several (wheel_1, wheel_2 ...); a class is the name without its number.
Left and right stay apart. Boat, chair, table and sofa have an outline and no parts.
"""

from __future__ import annotations

import re

_VEHICLE = "frontside leftside rightside backside roofside leftmirror rightmirror fliplate bliplate door wheel headlight window"
_LEGS = "lfuleg lflleg rfuleg rflleg lbuleg lblleg rbuleg rblleg"
_FACE = "head leye reye lear rear"
_PAWS = "lfleg lfpa rfleg rfpa lbleg lbpa rbleg rbpa"
_HORNED = f"{_FACE} muzzle lhorn rhorn torso neck {_LEGS} tail"
PARTS = {
    "aeroplane": "body stern lwing rwing tail engine wheel",
    "bicycle": "fwheel bwheel saddle handlebar chainwheel headlight",
    "bird": "head leye reye beak torso neck lwing rwing lleg lfoot rleg rfoot tail",
    "bottle": "cap body",
    "bus": _VEHICLE,
    "car": _VEHICLE,
    "cat": f"{_FACE} nose torso neck {_PAWS} tail",
    "cow": _HORNED,
    "dog": f"{_FACE} nose torso neck {_PAWS} tail muzzle",
    "horse": f"{_FACE} muzzle torso neck {_LEGS} tail lfho rfho lbho rbho",
    "motorbike": "fwheel bwheel handlebar saddle headlight",
    "person": (
        f"{_FACE} lebrow rebrow nose mouth hair torso neck llarm luarm lhand rlarm ruarm rhand "
        "llleg luleg lfoot rlleg ruleg rfoot"
    ),
    "pottedplant": "pot plant",
    "sheep": _HORNED,
    "train": (
        "head hfrontside hleftside hrightside hbackside hroofside headlight coach "
        "cfrontside cleftside crightside cbackside croofside"
    ),
    "tvmonitor": "screen",
}
"""Part names by object, in the order of the kit's numbers."""

WITHOUT = ("boat", "chair", "table", "sofa")
"""Objects that are no class; "table" is how the annotation calls VOC's diningtable."""

OBJECTS = tuple(PARTS)
PAIRS = tuple((name, part) for name, parts in PARTS.items() for part in parts.split())


def kind(part: str) -> str:
    """The class of a part's name: "wheel" of "wheel_2"."""
    return re.sub(r"_\d+$", "", part)
