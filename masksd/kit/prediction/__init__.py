"""Prediction on pictures with a trained checkpoint."""
