"""Rows of files to records: formats, parsing, splitting, checking."""
