"""Label propagation as it is published, restated without any shortcut: the oracle of tests/runners/test_video.py.

One frame at a time, every patch against every patch of every context, a mask of the neighbourhood filled by four loops, a
queue of the frames before. Written from the description of facebookresearch/dino 7c446df, eval_video_segmentation.py.
"""

from collections import deque

import cv2
import numpy as np
import torch
from PIL import Image


def size_of(height, width, short=480, multiple=64):
    if height > width:
        return int(short * height / width // multiple * multiple), short
    return short, int(short * width / height // multiple * multiple)


def frame_tensor(rgb, size, mean, std):
    """(3, h, w) float32 of an RGB frame (H, W, 3) uint8."""
    small = cv2.resize(rgb, size[::-1]).astype(np.float32) / 255.0
    chw = torch.from_numpy(small.transpose(2, 0, 1).copy())
    for channel, m, s in zip(chw, mean, std, strict=True):
        channel.sub_(m)
        channel.div_(s)
    return chw


def first_labels(mask, grid):
    """(C, h, w) float32, one-hot."""
    small = torch.from_numpy(np.array(Image.fromarray(mask).resize(grid[::-1], Image.Resampling.NEAREST))).long()
    return torch.stack([(small == label).float() for label in range(int(mask.max()) + 1)])


def neighbourhood(h, w, radius, circle=False):
    """(h * w, h * w): 1 where the two patches are near each other."""
    near = np.zeros((h, w, h, w), np.float32)
    for i in range(h):
        for j in range(w):
            for p in range(max(0, i - radius), min(h, i + radius + 1)):
                for q in range(max(0, j - radius), min(w, j + radius + 1)):
                    if not circle or (p - i) ** 2 + (q - j) ** 2 <= radius**2:
                        near[i, j, p, q] = 1
    return torch.from_numpy(near).reshape(h * w, h * w)


def step(current, contexts, labels, near, *, neighbours=5, temperature=0.1):
    """(C, h, w) of one frame. current: (h, w, D). contexts, labels: lists of (h, w, D) and (C, h, w)."""
    h, w, _ = current.shape
    unit = torch.nn.functional.normalize(current.flatten(0, 1), dim=1)
    columns = []
    for context in contexts:
        other = torch.nn.functional.normalize(context.flatten(0, 1), dim=1)
        affinity = torch.exp(unit @ other.T / temperature)  # target x source
        columns.append((affinity * near).T)
    affinity = torch.cat(columns)  # sources of all contexts x target
    least = torch.topk(affinity, min(neighbours, len(affinity)), dim=0).values.min(dim=0).values
    affinity[affinity < least] = 0
    affinity = affinity / affinity.sum(dim=0, keepdim=True)
    sources = torch.cat([label.flatten(1) for label in labels], dim=1)
    return (sources @ affinity).reshape(-1, h, w)


def soft_labels(features, first, *, radius=12, context=7, circle=False, **how):
    """(T, C, h, w). features: (T, h, w, D); first: (C, h, w) one-hot."""
    h, w = first.shape[1:]
    near = neighbourhood(h, w, radius, circle) if radius else torch.ones(h * w, h * w)
    queue = deque(maxlen=context)
    found = [first]
    for frame in features[1:]:
        used = [(features[0], first), *queue]
        found.append(step(frame, [f for f, _ in used], [s for _, s in used], near, **how))
        queue.append((frame, found[-1]))
    return torch.stack(found)


def pixel_scores(soft, patch):
    """(C, H, W): what the largest is taken of."""
    fine = torch.nn.functional.interpolate(
        soft[None], scale_factor=patch, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )[0].clone()
    for label in range(len(fine)):
        if fine[label].max() > 0:
            fine[label] -= fine[label].min()
            fine[label] /= fine[label].max()
    return fine


def to_original(labels, size):
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def label_map(soft, patch, size):
    """(H, W) uint8 at the original size."""
    return to_original(pixel_scores(soft, patch).max(dim=0).indices.numpy().astype(np.uint8), size)


def gap(soft, patch, size):
    """(H, W) float: by how much the best label of a pixel leads."""
    best = pixel_scores(soft, patch).topk(2, dim=0).values
    lead = (best[0] - best[1]).numpy()
    return np.array(Image.fromarray(lead).resize(size[::-1], Image.Resampling.NEAREST))
