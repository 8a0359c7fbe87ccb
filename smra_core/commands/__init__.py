"""Commands of the command line, one a file, and the options that they share."""
