"""Parameter values that are spelled as no value before them: what a value is and the model of them, and the member."""
