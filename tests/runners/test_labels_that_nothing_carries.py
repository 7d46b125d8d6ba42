"""A declared class that no labelled pixel carries is named; where a single class is left there is nothing to measure."""

import pytest

from evalkit.errors import ProtocolError
from evalkit.runners import configure, hummingbird, segmentation
from tests.runners import scenes

DENSE = {
    hummingbird: ("hummingbird", {"k": 3}),
    segmentation: ("segmentation", {"crop": 32, "stride": 16, "train_scale": (32, 32), "test_scale": (32, 32),
                                    "blocks": (11,), "steps": 2, "warmup": 0, "batch": 1}),
}  # fmt: skip
BOTH = ("0011", "0011", "1100", "1100")


def measured(runner, test, train, tmp_path):
    name, config = DENSE[runner]
    job = scenes.job(configure(name, config), test, train, tmp=tmp_path)
    return job, {score.name for score in runner.run(job)}


@pytest.mark.parametrize("runner", DENSE)
def test_masks_of_one_class_and_of_a_value_that_does_not_count_are_refused(runner, tmp_path):
    """Masks of 0 and 255: the object is declared, and no pixel is it."""
    data = scenes.Scenes((("0000", "0..0", "0..0", "0000"),), classes=("background", "coin"))
    with pytest.raises(ProtocolError, match=r"no labelled pixel is coin, so there is nothing to tell apart; .* 255"):
        measured(runner, data, data, tmp_path)


@pytest.mark.parametrize("runner", DENSE)
def test_a_class_that_never_occurs_is_on_record_and_has_no_score(runner, tmp_path):
    train = scenes.Scenes((BOTH,), classes=("a", "b", "never"), split="train")
    test = scenes.Scenes((("0000", "0000", "0000", "0000"), BOTH), classes=("a", "b", "never"))
    job, scores = measured(runner, test, train, tmp_path)
    assert job.facts["classes_without_pixels"] == {"train": ["never"], "test": ["never"]}
    assert "IoU/never" not in scores and "IoU/b" in scores


@pytest.mark.parametrize("runner", DENSE)
def test_where_every_class_occurs_nothing_is_said(runner, tmp_path):
    data = scenes.Scenes((BOTH,), classes=("a", "b"))
    assert "classes_without_pixels" not in measured(runner, data, data, tmp_path)[0].facts
