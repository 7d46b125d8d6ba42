"""Sliding inference against the plain procedure and against whole inference, where the two must agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evalkit.probing.dense_windows import Sliding, label_maps

CLASSES = 5


def logits(windows):
    """A head on the mean colours of 8 x 8 patches."""
    weight = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(windows, 8).permute(0, 2, 3, 1) @ weight.T


def photo(height, width, seed=1):
    return F.avg_pool2d(torch.randn(3, height + 6, width + 6, generator=torch.Generator().manual_seed(seed)), 7, 1) * 4


def plain(image, sliding, out):
    """One window at a time, as mmsegmentation slides."""
    crop, stride = sliding.crop, sliding.stride
    height, width = image.shape[1:]
    total, count = torch.zeros(1, CLASSES, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            window = image[None, :, top:bottom, left:right]
            window = F.pad(window, (0, -window.shape[3] % 8, 0, -window.shape[2] % 8))
            found = logits(window).permute(0, 3, 1, 2)
            if sliding.between > 1:
                found = F.interpolate(found, scale_factor=sliding.between, mode="bilinear")
            found = F.interpolate(found, size=window.shape[2:], mode="bilinear")
            total[..., top:bottom, left:right] += found[..., : bottom - top, : right - left]
            count[..., top:bottom, left:right] += 1
    return F.interpolate(total / count, size=out, mode="bilinear")[0].argmax(0)


@pytest.mark.parametrize("between", [1, 4])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_photos_of_several_sizes_are_as_one_window_at_a_time(between, at_once):
    sliding = Sliding(32, 21, 8, between)
    sizes = [(32, 43), (32, 32), (45, 60), (20, 32), (13, 90), (32, 43)]
    photos = [photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    outs = [(50, 70), (32, 32), (45, 60), (41, 66), (20, 30), (64, 86)]
    found = label_maps(photos, outs, sliding, logits=logits, at_once=at_once)
    for image, out, mine in zip(photos, outs, found, strict=True):
        wanted = plain(image, sliding, out)
        assert mine.shape == out
        assert (mine != wanted).float().mean() < 1e-3  # two equal sums may round differently


def test_a_window_as_large_as_the_photo_is_whole_inference():
    image = photo(32, 48)
    (found,) = label_maps([image], [(32, 48)], Sliding(48, 48, 8), logits=logits, at_once=4)
    wide = F.interpolate(logits(image[None]).permute(0, 3, 1, 2), size=(32, 48), mode="bilinear")
    assert torch.equal(found, wide[0].argmax(0))


def test_overlap_changes_nothing_where_windows_agree():
    """Logits that do not depend on the window: any stride gives the same map as one window."""
    flat = lambda windows: torch.tensor([0.1, 0.9, 0.3, 0.2, 0.5]).expand(len(windows), 4, 4, 5)
    (found,) = label_maps([photo(50, 61)], [(50, 61)], Sliding(32, 9, 8), logits=flat, at_once=2)
    assert (found == 1).all()


def test_padding_is_zero_and_is_dropped():
    seen = []

    def look(windows):
        seen.append(windows)
        return logits(windows)

    (found,) = label_maps([photo(13, 20) + 1], [(13, 20)], Sliding(32, 21, 8), logits=look, at_once=1)
    assert seen[0].shape == (1, 3, 16, 24)
    assert not seen[0][..., 13:, :].any() and not seen[0][..., 20:].any()
    assert found.shape == (13, 20)
