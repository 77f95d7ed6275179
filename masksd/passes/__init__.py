"""A training step and its passes."""
