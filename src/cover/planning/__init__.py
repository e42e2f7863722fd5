"""The cost of a run before it starts: memory, arithmetic, reading and communication."""
