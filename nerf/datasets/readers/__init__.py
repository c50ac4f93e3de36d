"""One file for each format of posed photos that other programs write."""
