"""Data: the refer format, the procedural shapes data set, text and picture preparation.

Import the module you need; the package itself loads nothing.
"""
