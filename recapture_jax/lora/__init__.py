"""LoRA as deltas outside the parameter tree."""
