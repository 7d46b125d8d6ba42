"""The shared transformer against timm's model, and against attention that keeps its softmax: `python bench/encode.py [--quick]`.

(a) ViT-S/16 at 224, fp32, and (b) under bf16 autocast: images per second, ours beside timm's own model with the same
weights. (c) ViT-S/8 on a video frame of 480 x 864 (6,481 tokens): seconds and peak memory beside the plain attention of
the released DINO code, which makes the full softmax matrix; memory is measured in processes of their own.
With `--device cuda` there is (d), both compiled; peak memory in (c) is the GPU's.

Each line: name, ours, plain, ratio, target, met or NOT MET; the exit code is 1 where a target is not met.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
from extraction import THREADS, line, seconds
from torch import Tensor, nn

from evalkit.adapters.dino import ARCHITECTURES
from evalkit.adapters.vit import VisionTransformer

FRAME = (480, 864)


def network(arch: str, device: torch.device) -> VisionTransformer:
    """The shared transformer with seeded weights."""
    vit = VisionTransformer(ARCHITECTURES[arch]).initialise(torch.Generator().manual_seed(0))
    return vit.eval().requires_grad_(False).to(device)


def timms(vit: VisionTransformer, name: str, device: torch.device) -> Any:
    """timm's model with the same weights."""
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    model.load_state_dict(vit.state_dict(), strict=True)
    return model.requires_grad_(False).to(device)


class Softmax(nn.Module):
    """Attention as the released code of DINO computes it: scores, softmax and product as matrices in memory."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.inner = attention

    def forward(self, x: Tensor, geometry: Any) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self.inner.split(x, geometry)
        weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.inner.proj((weights @ v).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def plain(vit: VisionTransformer) -> VisionTransformer:
    """The same network with that attention."""
    for block in vit.blocks:
        block.attn = Softmax(block.attn)
    return vit


def timed(model: Callable[[Tensor], Tensor], images: Tensor, repeats: int, bf16: bool) -> Callable[[], None]:
    """A work for `seconds`: the forward a few times, waiting for the device at the end."""

    def work() -> None:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            for _ in range(repeats):
                out = model(images)
            out[0, 0, 0].item()

    work()
    return work


def against_timm(device: torch.device, quick: bool, *, bf16: bool, compiled: bool = False) -> bool:
    """Images per second, ours beside timm's."""
    vit = network("vit_small_patch16", device)
    model = timms(vit, "vit_small_patch16_224", device)
    images = torch.randn(256 if device.type == "cuda" else 32, 3, 224, 224, device=device)
    forwards = [vit, model.forward_features]
    if compiled:
        forwards = [torch.compile(forward) for forward in forwards]
    repeats = 20 if device.type == "cuda" else 1
    ours, theirs = seconds(3 if quick else 9, *(timed(f, images, repeats, bf16) for f in forwards))
    count = len(images) * repeats
    name = f"ViT-S/16 {'bf16' if bf16 else 'fp32'}{', compiled' if compiled else ''}, {device.type}"
    return line(name, (count / ours, count / theirs), "images/s", theirs / ours, 1.0)


def peak(side: str, device: torch.device) -> float:
    """Peak memory in MB of a process that encodes one frame."""
    told = subprocess.run(
        [sys.executable, __file__, "--peak", side, "--device", device.type], check=True, capture_output=True, text=True
    )
    return float(told.stdout)


def encode_and_tell(side: str, device: torch.device) -> int:
    """The work of the process whose memory is measured; prints its peak in MB."""
    vit = network("vit_small_patch8", device)
    timed(vit if side == "ours" else plain(vit), torch.randn(1, 3, *FRAME, device=device), 1, False)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        with open("/proc/self/status") as status:
            print(next(int(row.split()[1]) for row in status if row.startswith("VmHWM")) / 1024)
    return 0


def on_a_frame(device: torch.device, quick: bool) -> list[bool]:
    """Seconds and memory, ours beside the attention that keeps its softmax."""
    image = torch.randn(1, 3, *FRAME, device=device)
    networks = network("vit_small_patch8", device), plain(network("vit_small_patch8", device))
    ours, theirs = seconds(1 if quick else 3, *(timed(network, image, 1, False) for network in networks))
    memory = peak("ours", device), peak("plain", device)
    return [
        line("ViT-S/8 at 480 x 864", (ours, theirs), "s", theirs / ours, 1.5),
        line("ViT-S/8 at 480 x 864, peak memory", memory, "MB", memory[0] / memory[1], 1.0, at_most=True),
    ]


def main() -> int:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", THREADS)))
    if arguments.peak:
        return encode_and_tell(arguments.peak, device)
    met = [against_timm(device, arguments.quick, bf16=bf16) for bf16 in (False, True)]
    if device.type == "cuda":
        met.append(against_timm(device, arguments.quick, bf16=True, compiled=True))
    met += on_a_frame(device, arguments.quick)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
