"""The servers whose models become lanes: their addresses, their keys, and finding those that run on this computer."""
