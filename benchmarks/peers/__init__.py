"""Peers: what a user would write instead, with the usual libraries.

Each script scores a directory of JPEGs to Parquet with a bundle's two networks and its crop rule,
on CPUs, and writes `path`, `prediction`, `probabilities` (final, in class order) and `box` (on the
canvas). Decoding, maps and orchestration are its own.
"""
