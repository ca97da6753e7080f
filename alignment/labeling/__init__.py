"""Rating by people: the screen, the page, line mode, files in and out, and the answers that they rate."""
