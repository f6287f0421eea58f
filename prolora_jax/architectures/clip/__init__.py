"""Text encoders of the CLIP kind."""
