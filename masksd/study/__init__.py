"""Ablation studies: variants of one training run, paired by seed, at equal steps and compute."""
