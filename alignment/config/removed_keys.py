"""Keys that no stage has any more, each with what to do instead; a config with one of them is refused with these words.

A stage adds its own (`ppo/removed_keys.py`).
"""

from __future__ import annotations

REMOVED_KEYS = {
    "tracking.num_samples": "answers to 16 held-out prompts are written to samples.jsonl; take it out",
    "tracking.project": "set WANDB_PROJECT in the environment",
}
