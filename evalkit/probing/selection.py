"""Which head of a sweep is reported, and which one the test split would have chosen.

Source: design rule 4. The head is chosen on held-out training images. The released scripts choose head and epoch on the
        test split (facebookresearch/dino 7c446df eval_linear.py: the best epoch; bytedance/ibot da316d8
        eval_linear_multi.py: the best head of the best epoch): that is the extra score "best-on-test".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evalkit.errors import ProtocolError
from evalkit.probing import train
from evalkit.probing.heads import Heads
from evalkit.state import Form, Sized


def choose(measured: Mapping[str, train.Measured], rates: tuple[float, ...]) -> tuple[str, int]:
    """Stack and place of the best living head: most right, then lower loss, lower rate, earlier stack.

    rates: base rates of the heads of every stack. Where nothing was held out the lowest living rate of the first stack
    is the answer. Raises ProtocolError where no head is alive.
    """
    ranks = [
        (-int(of.correct[index].sum()), float(of.loss[index]) if of.correct.shape[1] else 0.0, rate, place, index)
        for place, of in enumerate(measured.values())
        for index, rate in enumerate(rates)
        if of.alive[index]
    ]
    if not ranks:
        raise ProtocolError(
            f"every head diverged: the base rates {min(rates):g} to {max(rates):g} are too high"
            if len(rates) > 1
            else f"the head diverged at base rate {rates[0]:g}: its weights are not finite"
        )
    best = min(ranks)
    return list(measured)[best[3]], best[4]


class BestOnTest:
    """Remembers what the best head got right on the test split whenever it looked; the first of equals stays.

    stacks: in training. inputs: (n, D) test features by the same names. labels: (n,) int64, on the device of the heads.
    """

    def __init__(self, stacks: Mapping[str, Heads], inputs: Mapping[str, Tensor], labels: Tensor) -> None:
        self._stacks, self._inputs, self._labels = stacks, inputs, labels
        self.best = torch.zeros(0, len(labels), dtype=torch.bool)

    def look(self) -> None:
        """Measure every head as it is now."""
        rows = [self.best]
        for name, heads in self._stacks.items():
            rows.append(train.measure(heads, self._inputs[name], self._labels).correct)
        every = torch.cat(rows)
        self.best = every[max(range(len(every)), key=lambda index: int(every[index].sum()))].unsqueeze(0)

    def state(self) -> dict[str, Tensor]:
        """What was seen."""
        return {"best": self.best}

    def form(self) -> Form:
        """Of what `state` returns, before or after the first look."""
        return {"best": Sized(torch.bool, (range(2), len(self._labels)))}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.best = state["best"]
