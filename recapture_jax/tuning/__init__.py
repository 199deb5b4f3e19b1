"""The losses, the compiled step and the loop of masked fine-tuning."""
