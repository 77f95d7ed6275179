"""The shapes data set: procedural pictures with referring expressions, in refer format."""
