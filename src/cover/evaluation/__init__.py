"""Numbers with their protocol."""
