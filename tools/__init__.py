"""The verbs of the command line: one a file, the same code as ``elsa VERB``."""
