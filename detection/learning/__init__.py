"""What the next model learns from, when it is trained, and whether it may take the place of the last one."""
