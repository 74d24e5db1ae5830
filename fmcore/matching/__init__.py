"""The theory of flow matching: interpolants, conversions, laws of t, losses."""
