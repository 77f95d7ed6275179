"""A page in the browser on which a trained model is tried."""
