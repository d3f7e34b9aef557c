"""Tables, archives, data directories, settings and provenance."""
