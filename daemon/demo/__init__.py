"""`make run`: the demonstration on real lines."""
