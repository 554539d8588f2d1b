"""Model generations: the training set of a run, the model that it produced, and whether it took effect."""
