"""The last layer of a reward model, refitted in seconds: whose ratings made it so, and what more would bring."""
