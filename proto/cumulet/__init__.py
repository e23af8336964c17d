"""Cumulet's vocabulary and client. Imports nothing of the server's rooms."""
