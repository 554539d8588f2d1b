"""Templates: which event of the program a line is an instance of, as a number that lasts for ever."""
