"""Tests of conditions as vectors and texts."""
