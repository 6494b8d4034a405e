"""Who may do what: tokens, keys, the access rule, revocations."""
