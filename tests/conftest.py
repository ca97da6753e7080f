"""Keeps every library off the network before it is imported."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Subprocesses of the tests inherit these.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_SILENT="true",
    ALIGNMENT_TICK="0",  # a slow machine would have lines that a test does not expect
    ALIGNMENT_STRICT_METRICS="1",  # a metric that is not declared in alignment/runs/metrics.py is an error
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the golden losses hold for one thread count
for name in (
    "ALIGNMENT_REGISTRY", "ALIGNMENT_TIMEOUT", "ALIGNMENT_VERIFY", "HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE",
    "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_DISABLED",
):  # fmt: skip
    os.environ.pop(name, None)  # a test must not touch what the person running it has


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background; children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A busy machine is no counterexample.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption(
        "--write-table", action="store_true", help="write what test_parity.py found to docs/development/bench/parity.md"
    )


@pytest.fixture(autouse=True)
def leaves_signals_alone():
    """A handler that a test leaves behind fails another test, far away and not always: `exit_process` sets some."""
    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in ends]
    yield
    after = [signal.getsignal(number) for number in ends]
    for number, handler in zip(ends, before, strict=True):
        signal.signal(number, handler)
    assert after == before, "this test leaves a signal handler behind"


@pytest.fixture(scope="session")
def tokenizer():
    """A small tokenizer, shared: tests that change it make their own with `tiny.make_tokenizer`."""
    from helpers import tiny

    return tiny.make_tokenizer()
