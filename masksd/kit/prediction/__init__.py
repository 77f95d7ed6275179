"""Prediction on images with a trained checkpoint."""
