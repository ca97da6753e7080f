"""The demo's world: the help desk of a small public library, invented for this project.

The handbook holds the facts, `world` turns them into demonstrations and prompts in several styles, `gold` scores an
answer by rules, and `labelers` simulates people who perceive that score with noise.
"""
