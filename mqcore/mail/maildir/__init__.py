"""`maildir:PATH`: names and flags; as a source and as a sink."""
