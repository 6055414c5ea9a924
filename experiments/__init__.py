"""One script a question: read it from top to bottom, run it, copy it, change it."""
