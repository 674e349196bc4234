"""Training on Ray Train: labelled images -> bundle. Does not know how bundles are used."""
