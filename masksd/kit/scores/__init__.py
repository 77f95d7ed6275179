"""Scores: :mod:`masksd.kit.scores.metrics` (import it late: torchmetrics takes 2-3 s)."""
