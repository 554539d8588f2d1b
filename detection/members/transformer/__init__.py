"""The causal transformer over a session's templates: the member, its scoring, its network, its fitting."""
