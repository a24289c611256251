"""The tables that everything reads, files, errors and seeds: the ground floor."""
