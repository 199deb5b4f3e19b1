"""EDM: preconditioning, schedules, guidance, sampling. Knows no networks."""
