"""What runs: flows that only order tasks, and the command line."""
