"""Depth of a clip: networks, files, and evening out over time."""
