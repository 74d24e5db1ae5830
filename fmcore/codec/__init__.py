"""Codecs: latents in place of samples, and the way back to the data."""
