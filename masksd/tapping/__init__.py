"""How masks enter somebody else's model, and how that is looked into."""
