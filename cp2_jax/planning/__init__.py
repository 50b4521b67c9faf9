"""What a run will need, read from the compiled step: memory, work, communication, time at best."""
