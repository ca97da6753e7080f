"""What a run leaves on disk: the journal, checkpoints, how it resumes and stops."""
