"""Velocity networks: their settings, weights on disk, and their velocity."""
