"""What a run leaves behind: the journal, which is the truth, and Weights & Biases, a mirror of it."""

from alignment.tracking.journal import Journal
from alignment.tracking.wandb_sink import WandbSink

__all__ = ["Journal", "WandbSink"]
