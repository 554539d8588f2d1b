"""Training, in a process of its own: sessions in, a model generation out (`run.train`)."""
