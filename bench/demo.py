"""What a click on the demo page costs: the handler itself, with the tokens kept against the image encoded at every click.

What:   a shipped photograph, 320 pixels, patches of 8: 40 x 30 tokens of `micro-dino`. ours: one product and three drawings,
        as `evalkit demo` answers a click; the median of 20 clicks on 20 places. plain: the image is encoded anew first, as a
        script without memory would do it. Beside them the first click on a photograph, the slider, and the nearest patches of
        all shipped photographs. The browser and gradio's server are not in these numbers.
Run:    python bench/demo.py [--quick] [--threads N] [--encoder micro-dino]. Each line: name, values, target, met or NOT MET;
        exit code 1 where not met.
Expect: a click below 300 ms on a CPU with a micro encoder; about 40 to 60 ms on two busy cores.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evalkit.engine.evaluate import load
from evalkit.reporting.demo import photos
from evalkit.reporting.demo.desk import Desk
from evalkit.reporting.demo.looker import Looker

TARGET, CLICKS = 300, 20


def milliseconds(work: Callable[[int], object], times: int) -> list[float]:
    """Of each of so many calls; the call is told its number."""
    taken = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when the target is met, else 1."""
    parser = argparse.ArgumentParser(description="a click on the demo page: tokens kept against encoded anew")
    parser.add_argument("--quick", action="store_true", help="the plain way for three clicks only")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--encoder", default="micro-dino", help="a zoo id")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    limits, name = photos.Limits(), options.encoder
    shown = tuple(photos.examples(limits))
    encoder, photo = load(name), shown[0]

    def desk() -> Desk:
        return Desk(Looker([name], lambda _: encoder), shown, limits, Path())

    def place(number: int) -> tuple[int, int]:
        width, height = photo.shown.size
        return (number * 131 + 7) % width, (number * 89 + 5) % height

    kept = desk()
    first = milliseconds(lambda number: kept.click(name, photo, place(number), 0.6), 1)[0]
    clicks = milliseconds(lambda number: kept.click(name, photo, place(number), 0.6), CLICKS)
    slides = milliseconds(lambda number: kept.slide(name, photo, place(0), number / CLICKS), CLICKS)
    anew = milliseconds(lambda n: desk().click(name, photo, place(n), 0.6), 3 if options.quick else CLICKS)
    kept.nearest(name, photo, place(0), False)
    near = milliseconds(lambda number: kept.nearest(name, photo, place(number), False), CLICKS)
    ours, plain = statistics.median(clicks), statistics.median(anew)
    print(f"{_device()}, {torch.get_num_threads()} threads, {name}, medians of {CLICKS}")
    _line("click", f"ours {ours:.0f} ms  encoded anew {plain:.0f} ms  ratio {plain / ours:.1f}", ours < TARGET)
    _line("slowest click", f"{max(clicks):.0f} ms; the first on a photograph {first:.0f} ms")
    _line("slider", f"{statistics.median(slides):.0f} ms")
    _line("nearest patches", f"{statistics.median(near):.0f} ms of {len(shown)} photographs")
    return 0 if ours < TARGET else 1


def _device() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _line(name: str, values: str, met: bool | None = None) -> None:
    target, word = ("none", "") if met is None else (f"< {TARGET} ms", "met" if met else "NOT MET")
    print(f"{name:<28} {values:<60} target {target:<8} {word}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
