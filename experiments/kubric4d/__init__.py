"""Gradual dynamic view synthesis on Kubric-4D and on scenes rendered in its manner."""
