"""Procedural dynamic scenes with exact depth and exact novel views."""
