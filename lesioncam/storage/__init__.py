"""Storage: places, listing and manifest, labels, bundles and result files. No Ray."""
