"""What a migration is worth: pictures, the demo, and later trained laboratories."""
