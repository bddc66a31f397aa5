"""A world with known truth whose users act on rankings."""
