"""How good the daemon's verdicts are, measured on the whole daemon as a black box: `python -m benchmarks.quality`."""
