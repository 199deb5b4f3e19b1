"""Anchors against exact novel views of rendered scenes."""
