"""Models on this machine: finding them; later pulling, verifying, listing, removing."""
