"""params.yaml: read, checked whole, edited, made smaller."""
