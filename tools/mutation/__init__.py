"""Small mistakes planted into the package, and whether the tests notice them: what `make mutation` runs."""
