"""Recipes for data of one's own: what is looked at, what follows from it, and how it is written."""
