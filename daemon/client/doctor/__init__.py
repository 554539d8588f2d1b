"""`vigilctl doctor`: looks at everything that a daemon needs to do what it promises, and says what to do where it is
not so. Nothing here changes anything."""
