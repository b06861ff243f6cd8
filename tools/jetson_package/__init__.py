"""Packages for other machines: what they hold, how they are built from here, and what is checked before they leave."""
