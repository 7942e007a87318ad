"""Working on the machines of a Ray cluster. The only room that imports Ray; it can be deleted."""
