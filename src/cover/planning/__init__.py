"""What a run will cost: memory, arithmetic, reading and communication."""
