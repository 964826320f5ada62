"""Pictures of a cascade, and its report."""
