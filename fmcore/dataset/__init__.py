"""Target samples: each kind of data set is a settings class that reads itself."""
