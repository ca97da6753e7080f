"""What people read of runs: verdicts, reports, charts, the terminal."""
