"""What a person types: the commands of `reflow`, and what only they need."""
