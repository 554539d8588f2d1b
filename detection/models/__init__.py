"""Model generations: what one training run learned from, what it produced, what became of it."""
