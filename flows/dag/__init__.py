"""The graph of stages as DVC knows it; the only room that imports dvc."""
