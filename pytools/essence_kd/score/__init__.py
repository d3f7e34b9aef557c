"""Word error rates, significance and the report."""
