"""What is said of lines and sessions: records, incidents, explanations, and answers to questions."""
