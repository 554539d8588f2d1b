"""The admin API: a quart-trio application over `daemon.control.Control`, and the page it serves."""
