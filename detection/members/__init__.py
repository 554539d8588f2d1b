"""The members of the ensemble: each looks at one thing, and says how strange it is."""
