"""What `xverse doctor` finds out: the system, what computes here, and what to run."""
