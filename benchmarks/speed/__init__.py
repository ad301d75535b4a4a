"""How long things take, beside what a user would otherwise use."""
