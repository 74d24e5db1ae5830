"""The optimisation of a velocity: batches, steps, checkpoints, several processes."""
