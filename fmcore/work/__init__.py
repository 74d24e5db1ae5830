"""The context in which a verb runs: device, precision, seed, scratch folder, executor."""
