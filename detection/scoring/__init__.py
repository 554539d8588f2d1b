"""From a batch of rows to scores, p-values, flags, and the cause of each flag."""
