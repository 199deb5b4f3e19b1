"""Studies, each with its commands and the numbers they gave."""
