"""Do the numbers agree between this CPU and a GPU: features, votes, heads. Prints differences; non-zero when one is too large.

    python bench/gpu_parity.py

Both sides are evalkit's own; the CPU in float32 is the reference. Limits: features in float32 within 1e-3 relative,
in bf16 cosine above 0.99; k-NN top-1 equal on 99 % of queries.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from evalkit import load
from evalkit.runners import knn


def main() -> int:
    """Run every comparison; the number that failed."""
    if not torch.cuda.is_available():
        print("no GPU here")
        return 1
    print(torch.cuda.get_device_name())
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(256, 3, 64, 64, generator=rng)
    with torch.inference_mode():
        here = load("micro-dino").encode(images)[0].cls
        encoder = load("micro-dino").to(torch.device("cuda"))
        there = encoder.encode(images.cuda())[0].cls
        with torch.autocast("cuda", torch.bfloat16):
            half = encoder.encode(images.cuda())[0].cls
    assert here is not None and there is not None and half is not None
    relative = float((there.cpu() - here).norm() / here.norm())
    cosine = float(F.cosine_similarity(half.float().cpu(), here).min())
    queries, bank = torch.randn(500, 192, generator=rng), torch.randn(5000, 192, generator=rng)
    labels = torch.randint(0, 50, (5000,), generator=rng)
    votes = [
        knn.vote(q, b, y, ks=(10, 20), temperature=0.07).argmax(-1).cpu()
        for q, b, y in ((queries, bank, labels), (queries.cuda(), bank.cuda(), labels.cuda()))
    ]
    equal = float((votes[0] == votes[1]).double().mean())
    rows = [
        ("features fp32, relative difference", relative, relative < 1e-3),
        ("features bf16, smallest cosine", cosine, cosine > 0.99),
        ("k-NN top-1, share equal", equal, equal >= 0.99),
    ]
    for name, value, good in rows:
        print(f"{name}: {value:.3g} {'met' if good else 'NOT MET'}")
    return sum(not good for *_, good in rows)


if __name__ == "__main__":
    sys.exit(main())
