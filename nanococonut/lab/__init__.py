"""What a study needs and training does not: probe, table1, bench, and the export for the page."""
