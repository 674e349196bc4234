"""Benchmarks: one command per published number."""
