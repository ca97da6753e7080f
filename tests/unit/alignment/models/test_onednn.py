"""oneDNN's product in place of MKL's: the same values and gradients, and torch's own function again afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from alignment.models import onednn


@pytest.fixture
def amd(monkeypatch):
    monkeypatch.setattr(onednn, "is_amd", lambda: True)


@pytest.mark.parametrize("shape", [(96, 160), (3, 32, 160)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_values_and_gradients_are_those_of_float64(amd, shape, with_bias, trained):
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(*shape, generator=generator, requires_grad=True)
    weight = torch.randn(192, 160, generator=generator, requires_grad=trained)
    bias = torch.randn(192, generator=generator, requires_grad=True) if with_bias else None
    out = torch.randn(*shape[:-1], 192, generator=generator)
    exact = [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in (input, weight, bias)]
    expected = exact[0] @ exact[1].T + (0 if bias is None else exact[2])
    expected.backward(out.double())
    with onednn.linear_layers():
        found = functional.linear(input, weight, bias)
        assert "Product" in type(found.grad_fn).__name__ or with_bias
    found.backward(out)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip((input, weight, bias), exact, strict=True):
        if ours is not None and ours.requires_grad:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 16, 200])
def test_packed_weights_give_the_same_values(amd, rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(288, 320), nn.Linear(320, 288, bias=False), nn.Linear(288, 4))
    x = torch.randn(rows, 1, 288)
    expected = copy.deepcopy(model).double()(x.double())
    tied = nn.Linear(288, 320, bias=False)
    tied.weight = model[0].weight
    with torch.no_grad(), onednn.linear_layers(), onednn.packed_weights(model, 16):
        assert len(onednn._packed) == 2  # not the small one
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
        other = tied(x)
        with onednn.packed_weights(model, 16):  # a sampler inside of another: nothing is packed twice or dropped
            pass
        assert len(onednn._packed) == 2
        # The copies are what is multiplied by, not the weights.
        onednn._packed[id(tied.weight)] = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(320, 288), 16)
        assert not tied(x).any()
    torch.testing.assert_close(other, functional.linear(x, tied.weight), rtol=1e-5, atol=1e-5)
    assert not onednn._packed


def test_packed_weights_are_not_used_with_gradients_or_in_bfloat16_or_on_other_processors(amd, monkeypatch):
    layer = nn.Linear(288, 320)
    x = torch.randn(64, 288)
    with onednn.linear_layers(), onednn.packed_weights(layer, 16):
        layer(x).sum().backward()
        assert layer.weight.grad is not None and "Mkldnn" not in str(layer.weight.grad.layout)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    with onednn.linear_layers(), onednn.packed_weights(layer.bfloat16(), 16):
        assert not onednn._packed
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    with onednn.linear_layers(), onednn.packed_weights(layer.float(), 16):
        assert not onednn._packed


def test_an_expanded_gradient_is_read_right(amd):
    input = torch.randn(128, 192, requires_grad=True)
    weight = torch.randn(192, 192, requires_grad=True)
    with onednn.linear_layers():
        functional.linear(input, weight).sum().backward()
    torch.testing.assert_close(input.grad, weight.detach().sum(0).expand(128, 192), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight.grad, input.detach().sum(0).expand(192, 192), rtol=1e-4, atol=1e-4)


def test_what_is_small_or_of_another_type_and_everything_afterwards_is_torchs(amd):
    original = functional.linear
    with onednn.linear_layers():
        with onednn.linear_layers():  # sampling inside of a stage
            assert functional.linear is not original
        assert functional.linear is not original
        for dtype, size in ((torch.float32, 8), (torch.bfloat16, 512), (torch.float64, 512)):
            weight = torch.randn(size, size, dtype=dtype, requires_grad=True)
            found = functional.linear(torch.randn(size, size, dtype=dtype), weight)
            assert "Product" not in type(found.grad_fn).__name__
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(torch.randn(512, 512), torch.randn(512, 512)).dtype == torch.bfloat16
    assert functional.linear is original


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    original = functional.linear
    with onednn.linear_layers():
        assert functional.linear is original


def test_what_is_compiled_is_torchs_own(amd):
    layer = torch.nn.Linear(192, 192)
    input = torch.randn(128, 192)
    expected = layer(input)
    with onednn.linear_layers():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(input), expected, rtol=1e-5, atol=1e-5)
