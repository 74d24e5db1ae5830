"""The coupling data set: joint samples (target, source) as sharded Parquet with a manifest."""
