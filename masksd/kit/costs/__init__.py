"""What a run costs, before it starts: parameters, multiply-adds, memory, steps."""
