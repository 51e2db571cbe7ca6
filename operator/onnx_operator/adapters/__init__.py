"""The only code that talks to the outside: the API server, and the clock."""
