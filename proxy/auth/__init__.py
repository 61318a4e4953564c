"""Who is asking: how the credential of a request becomes a caller, and how sessions are minted and revoked."""
