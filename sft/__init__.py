"""Supervised fine-tuning on demonstrations, on `trl.SFTTrainer`."""
