"""What the package costs, measured beside baselines in the same run (`prolora benchmark`)."""
