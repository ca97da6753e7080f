"""The reward model: human comparisons in, a scalar model in the registry, on `trl.RewardTrainer`."""
