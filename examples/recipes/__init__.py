"""Recipes for every row of the paper's tables, a TOML file a table; installed as pabzip.recipes."""
