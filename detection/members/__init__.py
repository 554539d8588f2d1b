"""The members of the ensemble: each looks at lines or sessions in its own way and gives a score, larger is stranger."""
