"""Which stages produce which rows of which table."""
