"""The loss against the sum over one whole matrix of logits, in blocks of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignment.distributed.engine import run_as_forward
from sft import loss as sft_loss
from sft.loss import next_token_sums

VOCABULARY = 11


def by_hand(head, hidden, labels):
    """(loss, right, tokens) token by token: -log softmax of the label at the position before it."""
    total, right, tokens = torch.zeros(()), 0, 0
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            label = int(labels[b, t])
            if label != -100:
                logits = head(hidden[b, t - 1])
                total = total - (logits[label] - torch.log(torch.exp(logits).sum()))
                right += int(logits.argmax()) == label
                tokens += 1
    return total, right, tokens


@pytest.fixture
def parts():
    torch.manual_seed(0)
    head = nn.Linear(6, VOCABULARY)
    hidden = torch.randn(2, 9, 6, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (2, 9))
    labels[0, :4] = labels[1, 6:] = -100
    return head, hidden, labels


@pytest.mark.parametrize("at_once", [1, 3 * VOCABULARY, 2**25])
def test_sums_and_gradients_for_any_block(parts, at_once, monkeypatch):
    monkeypatch.setattr(sft_loss, "LOGITS_AT_ONCE", at_once)
    head, hidden, labels = parts
    loss, right, tokens = by_hand(head, hidden, labels)
    expected = torch.autograd.grad(loss, [hidden, *head.parameters()])
    sums = next_token_sums(head, hidden, labels, VOCABULARY)
    found = torch.autograd.grad(sums.loss, [hidden, *head.parameters()])
    assert sums.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert (int(sums.correct), int(sums.tokens)) == (right, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_more_logits_than_a_block(parts, monkeypatch):
    """The head is never asked for more rows than fit, forward or backward."""
    monkeypatch.setattr(sft_loss, "LOGITS_AT_ONCE", 4 * VOCABULARY)
    head, hidden, labels = parts
    sizes = []
    forward = head.forward
    head.forward = lambda x: sizes.append(len(x)) or forward(x)
    next_token_sums(head, hidden, labels, VOCABULARY).loss.backward()
    assert max(sizes) == 4
    assert sum(sizes) == 2 * int((labels[:, 1:] != -100).sum())  # once forward, once again for the backward


def test_label_smoothing_spreads_its_share(parts):
    head, hidden, labels = parts
    kept = labels[:, 1:] != -100
    logprobs = torch.log_softmax(head(hidden[:, :-1][kept]), -1)
    right = logprobs.gather(-1, labels[:, 1:][kept][:, None]).sum()
    expected = -(0.9 * right + 0.1 * logprobs.mean(-1).sum())
    assert next_token_sums(head, hidden, labels, VOCABULARY, 0.1).loss.item() == pytest.approx(expected.item())


def test_dft_weighs_the_gradient_by_the_probability():
    """One token of probability p: the loss is -p log p, and its gradient that of p' * -log p with p' held still."""
    logits = torch.tensor([[[0.3, -0.2, 0.1]] * 2], requires_grad=True)
    labels = torch.tensor([[-100, 1]])
    loss = next_token_sums(nn.Identity(), logits, labels, 3, dft=True).loss
    p = torch.softmax(logits[0, 0], -1)
    assert loss.item() == pytest.approx((-p[1] * p[1].log()).item())
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found[0, 0], (p[1] * (p - torch.tensor([0.0, 1.0, 0.0]))).detach())


@pytest.mark.parametrize("length", [1, 9])
def test_a_batch_without_labels_is_a_zero_that_reaches_every_weight(parts, length):
    """DDP waits for the gradient of each weight on each process."""
    head, hidden, _ = parts
    sums = next_token_sums(head, hidden[:, :length], torch.full((2, length), -100), VOCABULARY)
    assert (sums.loss.item(), int(sums.tokens)) == (0.0, 0)
    sums.loss.backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (hidden, *head.parameters()))


def test_a_call_as_forward_runs_the_hooks_and_leaves_no_trace():
    module = nn.Linear(2, 2)
    calls = []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    assert run_as_forward(module, module, lambda x: x + 1, 1) == 2
    assert calls == ["hook"]
    assert "forward" not in module.__dict__
    with pytest.raises(RuntimeError):
        run_as_forward(module, module, lambda: (_ for _ in ()).throw(RuntimeError()))
    assert module(torch.zeros(2)).shape == (2,)
