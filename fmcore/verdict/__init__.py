"""What the numbers mean: gates, advice, the comparison of rounds, pictures."""
