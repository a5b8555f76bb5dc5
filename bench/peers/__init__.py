"""Other engines on the same shape and the same machine, to be measured beside ours."""
