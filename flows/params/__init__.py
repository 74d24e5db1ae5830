"""Read, check, edit and reduce params.yaml."""
