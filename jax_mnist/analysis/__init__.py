"""From records to numbers and pictures: a study as a table, its facts, its report."""
