"""Sampling a flow: pairs of a coupling, samples for evaluation, the reverse SDE."""
