"""What a wrapper finds out about a model by running it."""
