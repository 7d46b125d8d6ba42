"""The loops: the published order of batches, measuring, and a stream that is killed and taken up."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evalkit.errors import ProtocolError
from evalkit.probing import schedules, train
from evalkit.probing.heads import Heads
from evalkit.types import Batch

RNG = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(23, 4, generator=RNG), torch.randint(3, (23,), generator=RNG)


class Memory:
    """A checkpoint that remembers every state it was given."""

    def __init__(self, state=None):
        self.saved = [] if state is None else [state]

    def load(self):
        return self.saved[-1] if self.saved else None

    def save(self, state):
        self.saved.append(state)

    def clear(self):
        self.saved = []


def order(epoch):
    return torch.randperm(23, generator=torch.Generator().manual_seed(epoch))


def stream(first, epochs=4, stop=None):
    for epoch in range(first, epochs):
        for start in range(0, 23, 10):
            if stop == (epoch, start):
                return
            rows = order(epoch)[start : start + 10]
            yield Batch(FEATURES[rows], LABELS[rows], rows, epoch, start == 20)


def by_hand(schedule):
    heads = Heads(torch.zeros(4, 3), [0.5, 5.0])
    for epoch in range(4):
        for step, start in enumerate((0, 10, 20)):
            rows = order(epoch)[start : start + 10]
            done = epoch / 4 if schedule == "epoch" else (3 * epoch + step) / 12
            heads.step(FEATURES[rows], LABELS[rows], schedules.cosine(done))
    return heads


@pytest.mark.parametrize("schedule", ["epoch", "iteration"])
def test_memory_and_stream_take_the_same_steps(schedule):
    plan = train.Plan(4, 10, schedule)
    cached, online = ({"a": Heads(torch.zeros(4, 3), [0.5, 5.0])} for _ in range(2))
    train.fit(cached, {"a": FEATURES}, LABELS, plan=plan, order=order)
    train.fit_stream(online, stream, lambda x: {"a": x}, plan=plan, images=23, checkpoint=Memory())
    for heads in (cached["a"], online["a"]):
        assert torch.equal(heads.head(1)[0], by_hand(schedule).head(1)[0])


@pytest.mark.parametrize("stop", [(0, 20), (2, 10), (3, 0)])
def test_a_killed_stream_goes_on_with_the_same_result(stop):
    plan, memory = train.Plan(4, 10, "iteration"), Memory()
    killed, resumed = ({"a": Heads(torch.zeros(4, 3), [0.5, 5.0])} for _ in range(2))
    with pytest.raises(ProtocolError, match=f"after {stop[0]} of 4 epochs"):
        train.fit_stream(
            killed, lambda first: stream(first, stop=stop), lambda x: {"a": x}, plan=plan, images=23, checkpoint=memory
        )
    train.fit_stream(resumed, stream, lambda x: {"a": x}, plan=plan, images=23, checkpoint=memory)
    assert torch.equal(resumed["a"].head(0)[0], by_hand("iteration").head(0)[0])


def test_a_finished_run_is_not_trained_again():
    plan, memory = train.Plan(4, 10), Memory()
    heads = {"a": Heads(torch.zeros(4, 3), [0.5])}
    train.fit_stream(heads, stream, lambda x: {"a": x}, plan=plan, images=23, checkpoint=memory)
    again = {"a": Heads(torch.zeros(4, 3), [0.5])}

    def no_stream(first):
        raise AssertionError("a stream was opened")

    train.fit_stream(again, no_stream, lambda x: {"a": x}, plan=plan, images=23, checkpoint=memory)
    assert torch.equal(again["a"].head(0)[0], heads["a"].head(0)[0])


def test_measure_agrees_with_each_head_alone(monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 30)
    heads = by_hand("epoch")
    found = train.measure(heads, FEATURES, LABELS)
    for index in range(2):
        logits = F.linear(FEATURES, *heads.head(index))
        assert torch.equal(found.correct[index], logits.argmax(1) == LABELS)
        assert found.loss[index].item() == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-5)


def test_measure_of_a_dead_head_and_of_nothing():
    heads = Heads(torch.zeros(4, 3), [3e38, 0.1])
    for _ in range(4):
        heads.step(9 * FEATURES, LABELS)
    found = train.measure(heads, FEATURES, LABELS)
    assert found.alive.tolist() == [False, True]
    assert not found.correct[0].any()
    assert found.loss[0] == torch.inf
    assert train.measure(heads, FEATURES[:0], LABELS[:0]).correct.shape == (2, 0)


def test_no_image_to_train_on():
    with pytest.raises(ProtocolError, match="no image"):
        train.fit({}, {}, LABELS[:0], plan=train.Plan(1, 1), order=order)
