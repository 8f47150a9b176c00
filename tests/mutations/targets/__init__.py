"""One module a kind of file, each with a `TARGET`."""
