"""Training, evaluation and prediction on files: what the command line runs."""
