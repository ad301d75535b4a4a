"""How much memory a run keeps, beside the published procedure."""
