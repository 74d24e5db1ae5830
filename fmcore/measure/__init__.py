"""What is measured of a flow: distances, straightness, transport cost, likelihood."""
