"""One configuration file per camera move."""
