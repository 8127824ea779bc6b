"""The command line: one verb a file. Only this folder prints."""
