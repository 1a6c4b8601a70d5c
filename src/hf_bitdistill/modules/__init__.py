"""How modules of this package are imported: names of a package when they are used, and modules that files name as they were called."""
