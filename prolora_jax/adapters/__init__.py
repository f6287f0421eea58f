"""What an adapter is: its modules, which base model it is for, how it is spelled in files."""
