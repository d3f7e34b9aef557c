"""Fuzzing of all readers: whatever the bytes, they give a value that makes sense, or a UserError (tests/README.md)."""
