"""How the miniature's networks are trained from scratch, and the checks that they must pass."""
