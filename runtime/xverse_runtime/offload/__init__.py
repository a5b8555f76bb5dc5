"""Where experts live while the model runs: what to keep, what to move, what to compute where."""
