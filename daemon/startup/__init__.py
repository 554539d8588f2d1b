"""From a state directory to a running detector: scan, replay, and what to do with a frame that cannot be applied."""
