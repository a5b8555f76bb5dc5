"""What reaches the terminal and the pipe. Knows nothing of the engine."""
