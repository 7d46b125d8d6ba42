"""What a sweep chose at an end of its grid stands on the console and under the tables, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evalkit import records
from evalkit.probing import selection
from evalkit.reporting import choices, table
from evalkit.types import Column, Score, Suite
from tests.making import a_record

GRID = (0.1, 0.5, 0.9)
SENTENCE = "T = 0.9 is the highest of the 3 tried (0.1 to 0.9): a better one may lie beyond"


def facts(**chosen: float) -> dict[str, object]:
    """As a runner tells them, through the one place that knows their shape."""
    found = selection.choose(torch.eye(3))
    return {"choices": {name: selection.fact("T", GRID, value, found) for name, value in chosen.items()}}


def test_a_record_says_which_scores_measure_the_grid() -> None:
    record = a_record("one", facts=facts(f1=0.9, best=0.9, other=0.5))
    assert choices.told(record) == [f"f1, best: {SENTENCE}"]
    assert choices.told(a_record("one", facts=facts(f1=0.5))) == []


def test_records_of_before_and_of_others_say_nothing() -> None:
    for odd in (
        {},
        {"choices": None},
        {"choices": ["T"]},
        {"choices": {"f1": 3}},
        {"choices": {"f1": {"edge": "lowest"}}},
    ):
        assert choices.told(a_record("one", facts=odd)) == []


def test_a_table_tells_it_of_its_own_columns(tmp_path: Path) -> None:
    for encoder, chosen in (("low", 0.9), ("mid", 0.5), ("top", 0.9)):
        record = a_record(encoder, facts=facts(**{"top1@k=10": chosen, "top1@k=20": 0.1}))
        score = Score("top1@k=10", 0.5, 4, 0.4, 0.6, outcomes=np.zeros(4, np.float32))
        records.save(record, [score], {}, tmp_path)
    suite = Suite("s", "a title", (Column("mini-knn-ccp-items", title="k-NN"),), ())
    notes = [note for note in table.build(suite, tmp_path).notes if "tried" in note]
    assert notes == [f"mini-knn-ccp-items: top1@k=10 of low, top: {SENTENCE}"]
