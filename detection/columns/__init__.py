"""The state as plain columns: names, layouts, digest, and arithmetic over runs of rows."""
