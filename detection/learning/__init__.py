"""Training: which sessions a model learns from, when it is trained, and whether it replaces the model in force."""
