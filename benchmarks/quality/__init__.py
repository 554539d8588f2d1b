"""Quality of the daemon's verdicts, measured on the whole daemon as a black box: `python -m benchmarks.quality`."""
