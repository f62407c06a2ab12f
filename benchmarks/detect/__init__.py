"""What is detected, placed and named of planted bugs, and what is alarmed of harmless changes: the measuring."""
