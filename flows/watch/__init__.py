"""A run while it goes on, from its events: a view for the terminal, JSON, a page that grows."""
