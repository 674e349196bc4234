"""Training on Ray Train: labeled images -> bundle. Does not know how bundles are used."""
