"""What a line of a meta file means."""
