"""Joiners and rankers on hosts of their own: moved, killed, cut off and added under load."""
