"""Files and folders on the disk: whole or not at all, and one writer at a time."""
