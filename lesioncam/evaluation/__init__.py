"""Evaluation: scores against labels and masks. Reads Parquet; needs neither torch nor Ray."""
