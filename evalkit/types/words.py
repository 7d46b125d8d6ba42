"""Small words: boxes, parts, roles, and the constants of pixels."""

from __future__ import annotations

from typing import Literal, TypeVar

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, origin top left, x1 and y1 exclusive; parts outside the image are black."""

Need = Literal["cls", "patches", "blocks", "projection", "attention"]
"""What a recipe can ask of an encoder."""

Part = Literal["cls", "mean", "patches", "projection", "bottleneck"]
"""A representation: class token (N, D); mean of the patch tokens (N, D); all patch tokens (N, h, w, D); output of the
pretraining head on the last block's class token after the final norm (N, D'), or what enters its last layer (N, D'')."""

Interpolation = Literal["bicubic", "bilinear"]
Fitting = Literal["again", "cut"]
Border = Literal["black", "edge"]
Precision = Literal["auto", "fp32", "bf16"]
Role = Literal["train", "test"]
Read = TypeVar("Read")
"""What a reader makes of a sample."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
