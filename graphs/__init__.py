"""The graphs that ship, and the models they use until another is named."""
