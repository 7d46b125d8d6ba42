"""Images as patches of pixels: what MAE, CAE and MMC predict."""

from __future__ import annotations

from torch import Tensor


def patches_of(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, h * w, patch * patch * 3): patches in reading order, each by row, column, colour."""
    b, c, height, width = images.shape
    cut = images.view(b, c, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def standardised(patches: Tensor) -> Tensor:
    """Every patch by itself with mean 0 and variance 1, the variance unbiased and raised by 1e-6
    (facebookresearch/mae efb2a80, models_mae.py:206-209)."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """(B, P, D) and indices (B, K) -> (B, K, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
