"""What a run leaves behind: reports, the manifest of a folder."""
