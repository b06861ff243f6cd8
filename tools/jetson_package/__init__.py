"""Packages for other machines: their contents, how they are built from here, and what is checked before they leave."""
