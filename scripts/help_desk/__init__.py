"""The demo's world: a small public library's help desk, made up for this project.

The handbook says what is so, `world` turns it into demonstrations and prompts of mixed manner, `gold` scores an
answer by written rules, and `labelers` simulates people who see that score through noise.
"""
