"""A project of one's own: made, given parameters that suit its data, moved to another version."""
