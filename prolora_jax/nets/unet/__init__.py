"""The UNet in Flax."""
