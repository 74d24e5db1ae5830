"""How a verb computes: device, precision, seed, scratch folder, executor."""
