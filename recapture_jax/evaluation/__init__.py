"""Measures of a re-filmed clip against the truth, the source, or the cameras that were asked for."""
