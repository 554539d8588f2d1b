"""Web parameter values of unusual spelling: the member, and its character model."""
