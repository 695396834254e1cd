"""`mbox:PATH`: the format, the locks, the journal; as a source and as a sink."""
