"""A run's files on disk: journal and checkpoints, and how it resumes and stops."""
