"""Reports on runs: verdicts, HTML pages, charts and the terminal view."""
