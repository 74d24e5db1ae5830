"""Pairs that somebody else made: read from files, checked, and written for others again."""
