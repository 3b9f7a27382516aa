"""How many creations may begin, and how many sessions may live, over all that share an account."""
