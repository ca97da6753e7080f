"""What scripts/rate.py can do, a module for each command or screen; each is imported only when it is asked for."""
