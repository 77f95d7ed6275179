"""Scores of masks: protocols, metrics, reports and comparisons, without a model."""
