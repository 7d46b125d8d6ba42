"""The loops: the published order of batches, measuring, and a stream that is killed and taken up."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from evalkit.errors import ProtocolError
from evalkit.probing import resume, schedules, train
from evalkit.probing.heads import Heads
from evalkit.probing.resume import Between, Share
from evalkit.types import Batch

RNG = torch.Generator().manual_seed(0)
FEATURES, LABELS = torch.randn(23, 4, generator=RNG), torch.randint(3, (23,), generator=RNG)


@pytest.fixture(autouse=True)
def saved_after_every_epoch(monkeypatch):
    monkeypatch.setattr(resume, "SAVED_EVERY", 0.0)


def fit_stream(stacks, batches, *, plan, images, checkpoint):
    """One course alone, whose features are the images."""
    train.fit_stream({"one": train.Course(stacks, plan, images)}, batches, lambda x: {"a": x}, checkpoint=checkpoint)


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
    fit_stream(online, stream, plan=plan, images=23, checkpoint=Memory())
    for heads in (cached["a"], online["a"]):
        assert torch.equal(heads.head(1)[0], by_hand(schedule).head(1)[0])


@pytest.mark.parametrize("stop", [(0, 20), (2, 10), (3, 0)])
def test_a_killed_stream_goes_on_with_the_same_result(stop):
    plan, memory = train.Plan(4, 10, "iteration"), Memory()
    killed, resumed = ({"a": Heads(torch.zeros(4, 3), [0.5, 5.0])} for _ in range(2))
    with pytest.raises(ProtocolError, match=f"after {stop[0]} of 4 epochs"):
        fit_stream(killed, lambda first: stream(first, stop=stop), plan=plan, images=23, checkpoint=memory)
    fit_stream(resumed, stream, plan=plan, images=23, checkpoint=memory)
    assert torch.equal(resumed["a"].head(0)[0], by_hand("iteration").head(0)[0])


def test_a_finished_run_is_not_trained_again():
    plan, memory = train.Plan(4, 10), Memory()
    heads = {"a": Heads(torch.zeros(4, 3), [0.5])}
    fit_stream(heads, stream, plan=plan, images=23, checkpoint=memory)
    again = {"a": Heads(torch.zeros(4, 3), [0.5])}

    def no_stream(first):
        raise AssertionError("a stream was opened")

    fit_stream(again, no_stream, plan=plan, images=23, checkpoint=memory)
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


def stepped(plan, *, held=()):
    """The heads that the obvious loop trains, and how many steps it took; the orders of `order`."""
    heads, steps = Heads(torch.zeros(4, 3), [0.5, 5.0]), 0
    images = 23 - len(held)
    per_epoch = images // plan.batch if plan.drop_last else -(-images // plan.batch)
    total = plan.iterations or plan.epochs * per_epoch
    for epoch in range(99):
        rows = torch.tensor([row for row in order(epoch).tolist() if row not in held])
        for start in range(0, images, plan.batch):
            if steps == total or (plan.drop_last and start + plan.batch > images):
                break
            batch = rows[start : start + plan.batch]
            heads.step(FEATURES[batch], LABELS[batch], schedules.cosine(steps / total))
            steps += 1
    return heads, steps


def chunks(size, epochs, held=()):
    """The stream in pieces of another size than the batch, without the images held out."""

    def stream(first):
        for epoch in range(first, epochs):
            for start in range(0, 23, size):
                rows = order(epoch)[start : start + size]
                rows = rows[[row not in held for row in rows.tolist()]]
                yield Batch(FEATURES[rows], LABELS[rows], rows, epoch, start + size >= 23)

    return stream


@pytest.mark.parametrize("size", [1, 4, 10, 23])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("iterations", [0, 3, 7])
@pytest.mark.parametrize("held", [(), (3, 4, 5, 22)])
def test_batches_do_not_depend_on_how_the_images_came(size, drop_last, iterations, held):
    plan = train.Plan(3, 6, "iteration", drop_last=drop_last, iterations=iterations)
    wanted, steps = stepped(plan, held=held)
    assert steps == (iterations or 3 * plan.steps(23 - len(held)))
    found, memory = Heads(torch.zeros(4, 3), [0.5, 5.0]), Memory()
    images = 23 - len(held)
    stream = chunks(size, plan.passes(images), held)
    fit_stream({"a": found}, stream, plan=plan, images=images, checkpoint=memory)
    assert torch.allclose(found.head(1)[0], wanted.head(1)[0], rtol=1e-5, atol=1e-6)
    assert len(memory.saved) == plan.passes(images)


@pytest.mark.parametrize("iterations", [0, 7])
def test_features_in_memory_take_the_same_steps(iterations):
    plan = train.Plan(3, 6, "iteration", drop_last=True, iterations=iterations)
    found = Heads(torch.zeros(4, 3), [0.5, 5.0])
    train.fit({"a": found}, {"a": FEATURES}, LABELS, plan=plan, order=order)
    assert torch.equal(found.head(1)[0], stepped(plan)[0].head(1)[0])


@pytest.mark.parametrize("done", [1, 2, 3])
def test_features_in_memory_are_taken_up_after_each_epoch(done):
    class Killed(Exception):
        pass

    def until(epochs):
        for epoch in epochs:
            if epoch == done:
                raise Killed
            yield epoch

    plan, memory = train.Plan(4, 10, "iteration"), Memory()
    killed, resumed = (Heads(torch.zeros(4, 3), [0.5, 5.0]) for _ in range(2))
    options = {"plan": plan, "order": order, "between": Between(Share(memory, "seed"))}
    with pytest.raises(Killed):
        train.fit({"a": killed}, {"a": FEATURES}, LABELS, track=until, **options)
    assert memory.load()["seed"]["epochs"] == done
    train.fit({"a": resumed}, {"a": FEATURES}, LABELS, **options)
    assert torch.equal(resumed.head(0)[0], by_hand("iteration").head(0)[0])


def test_an_epoch_of_broken_images_still_takes_a_step():
    """Seven of 23 can be decoded: no batch of ten is whole, but leaving the only one out would train nothing."""
    plan = train.Plan(2, 10, "constant", drop_last=True)
    found, wanted = (Heads(torch.zeros(4, 3), [0.5, 5.0]) for _ in range(2))
    fit_stream({"a": found}, chunks(4, 2, tuple(range(16))), plan=plan, images=23, checkpoint=Memory())
    for epoch in range(2):
        rows = order(epoch)[order(epoch) >= 16]
        wanted.step(FEATURES[rows], LABELS[rows])
    assert torch.allclose(found.head(1)[0], wanted.head(1)[0], rtol=1e-5, atol=1e-6)


def test_shares_of_a_checkpoint_do_not_meet():
    memory = Memory()
    one, other = Share(memory, "one"), Share(memory, "other")
    assert one.load() is None
    one.save({"epochs": 1})
    other.save({"epochs": 2})
    assert (one.load(), other.load()) == ({"epochs": 1}, {"epochs": 2})
    one.clear()
    assert (one.load(), other.load()) == (None, {"epochs": 2})


@pytest.mark.parametrize(("iterations", "ends"), [(0, True), (4, False), (6, True)])
def test_the_stream_is_read_to_its_end_where_all_of_it_is_wanted(iterations, ends):
    """Only then its owner knows every image that could not be decoded."""
    told = []

    def whole(first):
        yield from stream(first, epochs=2)
        told.append(True)

    plan = train.Plan(2, 10, iterations=iterations)
    fit_stream({"a": Heads(torch.zeros(4, 3), [0.5])}, whole, plan=plan, images=23,
                     checkpoint=Memory())  # fmt: skip
    assert bool(told) == ends


def test_the_state_is_saved_now_and_then_and_at_the_end(monkeypatch):
    """Where saving takes longer than an epoch, it is not done after each."""
    monkeypatch.setattr(resume, "SAVED_EVERY", 1e9)
    memory = Memory()
    train.fit({"a": Heads(torch.zeros(4, 3), [0.5])}, {"a": FEATURES}, LABELS, plan=train.Plan(4, 10), order=order,
              between=Between(memory))  # fmt: skip
    assert [state["epochs"] for state in memory.saved] == [4]


@pytest.mark.parametrize("size", [4, 23])
@pytest.mark.parametrize("iterations", [0, 7])
def test_courses_are_trained_as_if_each_were_alone(size, iterations):
    """They share a stream and leave out images of their own; some are done passes before the others."""
    left_out = {"none": (), "few": (3, 4, 5, 22), "many": tuple(range(14))}
    wanted, courses, plan = {}, {}, train.Plan(3, 6, "iteration", drop_last=True, iterations=iterations)
    for name, held in left_out.items():
        wanted[name], _ = stepped(plan, held=held)
        mask = torch.zeros(23, dtype=torch.bool)
        mask[list(held)] = True
        courses[name] = train.Course({"a": Heads(torch.zeros(4, 3), [0.5, 5.0])}, plan, 23 - len(held), mask)
    encoded = []

    def encode(images):
        encoded.append(len(images))
        return {"a": images}

    passes = max(course.passes for course in courses.values())
    train.fit_stream(courses, chunks(size, passes), encode, checkpoint=Memory())
    for name, course in courses.items():
        assert torch.allclose(course.stacks["a"].head(1)[0], wanted[name].head(1)[0], rtol=1e-5, atol=1e-6)
    assert sum(encoded) <= 23 * passes
