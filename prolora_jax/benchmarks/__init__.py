"""Made models, adapters and measurements for timing the package at real size."""
