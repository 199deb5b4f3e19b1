"""Cameras, poses, film moves and trajectories."""
