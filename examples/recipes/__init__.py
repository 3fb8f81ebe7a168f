"""Recipes for every row of the paper's tables, one TOML file a row; installed as pabzip.recipes."""
