"""The networks, in Flax."""
