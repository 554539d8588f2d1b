"""From a state directory to a running detector: scan, replay, and the ladder for a frame that cannot be applied."""
