"""What a flow is conditioned on: vectors and texts as a table of unique conditions by id."""
