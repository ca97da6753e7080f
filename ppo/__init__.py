"""PPO from human feedback: our own loop on accelerate."""
