"""Clips in and out of files."""
