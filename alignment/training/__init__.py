"""What the stages share in training: the start model, callbacks, publishing."""
