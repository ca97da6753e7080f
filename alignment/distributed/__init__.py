"""Processes, devices and the training engine: what accelerate and DeepSpeed do."""
