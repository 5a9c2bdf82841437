"""How fast the real code paths are, beside peers, and what their devices hold and exchange."""
