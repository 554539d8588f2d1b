"""The requests of the admin API, and how the daemon serves them."""
