"""Markdown, code and TeX as readers see them, on the page and in the terminal."""
