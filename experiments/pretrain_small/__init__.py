"""Trains the small prior the package ships, from scratch, on rendered scenes. See README.md."""
