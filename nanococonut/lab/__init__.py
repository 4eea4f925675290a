"""What a study needs and training does not: probe, table1 and bench."""
