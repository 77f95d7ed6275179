"""Evaluation: a trained model scored on a split."""
