"""Enlargement as matrix products against torch's interpolation, step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evalkit.errors import ProtocolError
from evalkit.probing import enlarging
from evalkit.probing.enlarging import best, cross_entropy, enlargement, joined, starts, steps, stitching


@pytest.fixture(params=[1 << 19, 200], ids=["one band", "bands"])
def band(request, monkeypatch):
    monkeypatch.setitem(enlarging.BAND, "cpu", request.param)


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def plainly(small, *sizes):
    """(B, C, H, W) of (B, h, w, C), each resize made."""
    wide = small.permute(0, 3, 1, 2)
    for size in sizes:
        wide = F.interpolate(wide, size=size, mode="bilinear", align_corners=False)
    return wide


def test_one_step_and_several_are_torchs_interpolation():
    row = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for lengths in ((7, 20), (7, 28, 50), (7, 3), (7, 28, 5)):
        wanted = row[None]
        for length in lengths[1:]:
            wanted = F.interpolate(wanted, size=length, mode="linear", align_corners=False)
        assert torch.allclose(row @ steps(*lengths).T, wanted[0], atol=1e-12)
    assert torch.allclose(steps(7, 28, 50).sum(1), torch.ones(50, dtype=torch.float64))
    with pytest.raises(ProtocolError, match="at least 1"):
        steps(4, 0)


@pytest.mark.parametrize("sizes", [[(33, 50)], [(20, 28), (33, 50)], [(3, 4)]])
@pytest.mark.usefixtures("band")
def test_loss_and_slope_are_those_of_the_plain_steps(sizes):
    small, classes = maps(2, 5, 7, 6), 6
    truth = torch.randint(-1, classes, (2, *sizes[-1]), generator=torch.Generator().manual_seed(2))
    truth[1, :2] = -1  # a band without a label
    mine, other = small.clone().requires_grad_(), small.double().requires_grad_()
    loss = cross_entropy(mine, truth.to(torch.int16), enlargement((5, 7), *sizes))
    wanted = F.cross_entropy(plainly(other, *sizes), truth, ignore_index=-1, reduction="none").mean()
    loss.backward()
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert torch.allclose(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-9)


def test_large_logits_neither_overflow_nor_lose_the_loss():
    small = torch.tensor([[[[500.0, -500.0]]]])
    onto = enlargement((1, 1), (2, 2))
    assert float(cross_entropy(small, torch.ones(1, 2, 2), onto)) == 1000
    assert float(cross_entropy(small, torch.zeros(1, 2, 2), onto)) == 0


def test_nothing_that_counts_is_no_loss_and_no_slope():
    small = maps(1, 2, 2, 3).requires_grad_()
    loss = cross_entropy(small, torch.full((1, 4, 4), -1), enlargement((2, 2), (4, 4)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not small.grad.any()


def test_labels_that_do_not_fit_are_refused():
    onto = enlargement((2, 2), (4, 4))
    with pytest.raises(ProtocolError, match="shape"):
        cross_entropy(maps(1, 2, 2, 3), torch.zeros(1, 5, 4), onto)
    with pytest.raises(ProtocolError, match="a label is 3; 3 classes are 0 to 2"):
        cross_entropy(maps(1, 2, 2, 3), torch.full((1, 4, 4), 3), onto)


def test_a_linear_layer_and_the_enlargement_change_places():
    """The head on the grid, then enlarged = tokens enlarged 4 times, 1x1 convolution, resized to the labels."""
    tokens = torch.randn(2, 4, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    layer = torch.nn.Conv2d(9, 5, 1).double()
    wide = F.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=4, mode="bilinear", align_corners=False)
    wanted = F.interpolate(layer(wide), size=(37, 50), mode="bilinear", align_corners=False)
    small = F.linear(tokens, layer.weight[:, :, 0, 0], layer.bias)
    rows, columns = steps(4, 16, 37), steps(6, 24, 50)
    mine = torch.einsum("yh,bhwc,xw->bcyx", rows, small, columns)
    assert torch.allclose(mine, wanted, atol=1e-12)


@pytest.mark.usefixtures("band")
def test_the_best_class_is_that_of_the_plain_steps_and_ties_go_to_the_lowest():
    small = maps(1, 5, 7, 6)
    found = best(small[0].transpose(1, 2), enlargement((5, 7), (20, 28), (33, 50)))
    assert torch.equal(found, plainly(small, (20, 28), (33, 50))[0].argmax(0))
    assert not best(torch.zeros(2, 4, 3), enlargement((2, 3), (9, 9))).any()


@pytest.mark.parametrize(
    ("length", "crop", "stride", "wanted"),
    [
        (683, 512, 341, (0, 171)),
        (512, 512, 341, (0,)),
        (300, 512, 341, (0,)),
        (1024, 480, 161, (0, 161, 322, 483, 544)),
    ],
)
def test_windows_begin_where_mmsegmentation_begins_them(length, crop, stride, wanted):
    assert starts(length, crop, stride) == wanted


@pytest.mark.parametrize(("size", "out"), [((40, 67), (50, 90)), ((32, 32), (32, 32)), ((20, 70), (33, 33))])
@pytest.mark.usefixtures("band")
def test_stitched_windows_are_the_averaged_canvas_resized(size, out):
    crop, stride, patch, classes = 32, 11, 8, 5
    ys, xs = (starts(length, crop, stride) for length in size)
    tall = min(crop, -(-size[0] // patch) * patch)
    windows = maps(len(ys) * len(xs), tall // patch, crop // patch, classes, seed=4)
    canvas, count = torch.zeros(classes, *size), torch.zeros(size)
    wide = plainly(windows, (tall, crop))
    for number, (y, x) in enumerate((y, x) for y in ys for x in xs):
        part = wide[number, :, : size[0] - y, : size[1] - x]
        canvas[:, y : y + tall, x : x + crop] += part
        count[y : y + tall, x : x + crop] += 1
    wanted = F.interpolate((canvas / count)[None], size=out, mode="bilinear", align_corners=False)[0]
    rows = stitching(size[0], out[0], crop=crop, stride=stride, path=(tall // patch, tall))
    columns = stitching(size[1], out[1], crop=crop, stride=stride, path=(crop // patch, crop))
    laid = joined(windows, (len(ys), len(xs)))
    mine = torch.einsum("yh,hcw,xw->cyx", rows, laid, columns)
    assert torch.allclose(mine, wanted, atol=1e-5)
    assert torch.equal(best(laid, enlarging.Enlargement(rows, columns)), wanted.argmax(0))
