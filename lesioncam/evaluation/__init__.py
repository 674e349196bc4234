"""Evaluation and report: reads Parquet and labels; needs neither torch nor Ray."""
