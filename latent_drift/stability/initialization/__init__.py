"""Initialisation by measured variance through depth."""
