"""Fast execution of per-image decisions, and budgets."""
