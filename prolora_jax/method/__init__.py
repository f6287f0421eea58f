"""docs/method.md as code: arrays in, arrays out."""
