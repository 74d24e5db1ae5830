"""The commands of `reflow`, and the code that only they need."""
