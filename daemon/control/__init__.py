"""What the admin API can ask of the daemon, and how the daemon does it."""
