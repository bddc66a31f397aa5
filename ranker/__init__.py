"""Snapshot in, ranking out, impression logged: the serving process."""
