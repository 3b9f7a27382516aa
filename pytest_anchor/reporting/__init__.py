"""What a run's record comes to, and how far a sweep is."""
