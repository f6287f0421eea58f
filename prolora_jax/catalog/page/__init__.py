"""The page about a catalog: one HTML file, nothing from the network."""
