"""What the operator and tenants should know soon."""
