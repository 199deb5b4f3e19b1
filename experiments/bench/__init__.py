"""Benchmarks, each one command that measures ours and a reference side by side."""
