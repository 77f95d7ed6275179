"""Sentences to token ids, and what is cleaned before."""
