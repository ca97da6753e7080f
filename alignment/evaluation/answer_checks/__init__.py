"""Checks of answers that `alignment compare --by` names: JSON, refusals, consistency, support by a given text."""
