"""The trio actors and the channels between them; what `daemon` does asynchronously starts, stops and serves them."""
