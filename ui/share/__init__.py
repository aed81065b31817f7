"""Who may reach the app and as whom: addresses, logins, the link, visitors and their limits."""
