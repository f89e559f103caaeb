"""What the tool writes and reads: dumps, backups."""
