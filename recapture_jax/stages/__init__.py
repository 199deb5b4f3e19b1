"""The three stages: anchor, tune, generate."""
