"""Where data is: a data directory or a running node, and their commit logs."""
