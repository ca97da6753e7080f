"""Configs of the stages: YAML, overrides, the sections that stages share, and the recipes that ship with the suite."""
