"""What the reward stage's config takes and refuses."""

import re

import pytest

from alignment.config.loading import validate
from alignment.errors import ConfigError
from reward.building import note_layout
from reward.config import RewardStageConfig

VALUES = {"name": "r", "model": {"name": "sft"}, "data": {"train": "pairs.jsonl"}, "registry": {"name": "r"}}


def test_a_removed_key_is_refused_with_what_to_do_instead():
    key = "reward.shared_prefix"
    with pytest.raises(ConfigError, match=re.escape(f"was taken out: {RewardStageConfig.removed_keys[key]}")):
        validate(RewardStageConfig, VALUES | {"reward": {"shared_prefix": "off"}}, "test")


def test_packing_that_is_asked_for_and_impossible_is_refused():
    class Events:
        def event(self, name, **fields):
            self.layout = fields["layout"]

    events, prepared = Events(), None
    config = validate(RewardStageConfig, VALUES | {"training": {"packing": True}}, "test")
    with pytest.raises(ConfigError, match=r"training\.packing: its head is odd; remove the key"):
        note_layout(config, prepared, "its head is odd", events)
    note_layout(config, prepared, None, events)
    assert events.layout == "packed"
