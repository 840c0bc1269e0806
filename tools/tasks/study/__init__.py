"""Studies: a table of variants × seeds of one recipe, run, compared and drawn."""
