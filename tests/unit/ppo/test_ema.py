"""A moving average against its sum written out, and parameters that come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppo.ema import EMA


def test_the_average_is_the_weighted_sum_of_all_values():
    layer = nn.Linear(3, 2)
    values = [layer.weight.detach().clone()]
    ema = EMA([("w", layer.weight)], 0.9)
    for _ in range(4):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3))
        ema.update()
        values.append(layer.weight.detach().clone())
    expected = 0.9**4 * values[0] + sum(0.1 * 0.9 ** (4 - n) * values[n] for n in range(1, 5))
    with ema.applied():
        torch.testing.assert_close(layer.weight.data, expected)
    assert torch.equal(layer.weight.data, values[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_come_back_whatever_happens(dtype):
    parameter = nn.Parameter(torch.randn(5).to(dtype))
    before = parameter.detach().clone()
    ema = EMA([("p", parameter)], 0.5)
    with torch.no_grad():
        parameter.mul_(2)
    moved = parameter.detach().clone()
    ema.update()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert parameter.dtype == dtype
        torch.testing.assert_close(parameter.data.float(), 1.5 * before.float(), rtol=0.01, atol=0.01)
        parameter.data.zero_()  # what is done inside is undone, and not done to the average
        raise RuntimeError("inside")
    assert torch.equal(parameter.data, moved)
    with ema.applied():
        torch.testing.assert_close(parameter.data.float(), 1.5 * before.float(), rtol=0.01, atol=0.01)


def test_small_steps_add_up_where_bfloat16_would_lose_them():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA([("p", parameter)], 0.999)
    with torch.no_grad():
        parameter.fill_(2.0)
    for _ in range(1000):
        ema.update()
    assert ema.state_dict()["p"].item() == pytest.approx(2 - 0.999**1000, rel=1e-3)


def test_an_average_comes_back_from_its_state():
    parameter = nn.Parameter(torch.randn(4))
    one, other = EMA([("p", parameter)], 0.5), EMA([("p", nn.Parameter(torch.zeros(4)))], 0.5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.state_dict()["p"], parameter.data)
