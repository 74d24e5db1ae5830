"""Metrics: plain functions of tensors. Import the module you need, so that a stage depends on
the metrics it uses and on no others."""
