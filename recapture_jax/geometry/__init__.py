"""Projection, splatting and masks."""
