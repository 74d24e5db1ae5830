"""A flow sampled: pairs of a coupling, samples for evaluation, the reverse SDE."""
