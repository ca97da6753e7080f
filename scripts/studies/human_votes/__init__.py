"""The parts of `real_model.py`: data, runs, what the rows say, and the page."""
