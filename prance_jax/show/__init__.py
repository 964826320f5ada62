"""Pictures of a trained run for people: what was kept, what was chosen, how it was learned; and one page with all of it."""
