"""Storage: stores, listing and manifest, labels, bundles and score files. No Ray."""
