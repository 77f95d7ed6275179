"""A checkpoint for use and for others: without its training, verified, with a model card."""
