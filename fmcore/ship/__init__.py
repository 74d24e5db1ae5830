"""A round handed on: one graph from noise to samples, and a folder that diffusers loads."""
