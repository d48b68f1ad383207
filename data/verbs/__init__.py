"""What `python -m data VERB` does."""
