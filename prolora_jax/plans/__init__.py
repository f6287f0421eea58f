"""What was asked, what will be done, what was done."""
