"""Load for a server: traffic, and the command that sends it."""
