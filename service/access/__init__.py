"""Authentication and authorisation: tenants, tokens, certificates, quotas and the audit."""
