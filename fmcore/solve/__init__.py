"""Solvers of the ODE and of the reverse SDE, as functions of a velocity."""
