"""What vigilctl prints: the answers of the daemon as text."""
