"""The picture of a run: what ran when, beside what, what waited for what, and what would have been faster."""
