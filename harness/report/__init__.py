"""All that the program prints: plans, lists, tables, verdicts, pages. No torch; each module says what it brings in."""
