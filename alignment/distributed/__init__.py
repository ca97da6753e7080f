"""Processes, devices, the training engine, ZeRO and failure detection."""
