"""How training scales with the number of processes: a model of a step's cost, and measurements."""
