"""Measures of a flow: distances, straightness, transport cost, likelihood."""
