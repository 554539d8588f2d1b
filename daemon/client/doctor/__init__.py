"""`vigilctl doctor`: checks everything that a daemon needs to keep its promises, and says what to do about each fault.
Nothing here changes anything."""
