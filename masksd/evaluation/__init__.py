"""Scores: :mod:`masksd.evaluation.metrics` (import it late: torchmetrics takes 2-3 s)."""
