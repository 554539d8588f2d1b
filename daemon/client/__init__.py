"""vigilctl's parts: where the daemon is, talking to it, sending it logs, showing what it says."""
