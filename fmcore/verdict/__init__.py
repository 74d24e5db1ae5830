"""Interpretation of metrics: gates, advice, the comparison of rounds, pictures."""
