"""Recipes for the papers' tables, a TOML file a table or paper; installed as pabzip.recipes."""
