"""Training code that the stages share: the initial model, callbacks, publishing."""
