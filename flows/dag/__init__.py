"""The graph of stages as DVC knows it; the only package that imports dvc."""
