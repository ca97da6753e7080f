"""Sums of metrics by name."""

from __future__ import annotations

import pytest
import torch

from ppo import metrics
from ppo.metrics import MetricSums


def test_a_mean_is_over_its_own_count_whatever_the_order():
    one, other = MetricSums(), MetricSums()
    one.add("a", torch.tensor(3.0), 2)
    one.add("b", torch.tensor(10.0), 5)
    one.add("a", torch.tensor(5.0), 2)
    other.add("b", torch.tensor(1.0), torch.tensor(6))
    other.add("c", torch.tensor(4.0), 4)
    one.merge(other)
    assert one.means() == {"a": 2.0, "b": 1.0, "c": 1.0}


def test_processes_add_up_by_name_though_they_met_the_names_in_another_order(monkeypatch):
    first, second = MetricSums(), MetricSums()
    for sums, names in ((first, "ab"), (second, "ba")):
        for name in names:
            sums.add(name, torch.tensor(1.0 if name == "a" else 9.0), 1 if name == "a" else 3)
    sent = []
    monkeypatch.setattr(metrics, "all_reduce_sum", lambda x: sent.append(x) or x)
    first.reduced()
    monkeypatch.setattr(metrics, "all_reduce_sum", lambda x: x + sent[0])
    assert second.reduced().means() == pytest.approx({"a": 1.0, "b": 3.0})
