"""The laboratory: small diffusion models anyone can train, to see which adapters survive a move."""
