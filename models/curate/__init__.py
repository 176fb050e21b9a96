"""Which data to train on, and how much of it."""
