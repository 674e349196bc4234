"""Scoring on Ray Data: images -> Parquet. Does not know how a bundle came to be."""
