"""One fake for each seam; each passes the contract tests of what it stands for."""
